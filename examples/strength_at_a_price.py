"""Compare two directions at the same price instead of at the same strength.

python examples/strength_at_a_price.py
"""

import torch

import expertsteer as es
from expertsteer import demo
from expertsteer.evaluation.methods import random_directions
from expertsteer.models.scoring import choice_probabilities

model, tokenizer = demo.load("target")
states = es.capture(model, tokenizer, demo.contrast_set())
own = es.LayerPairing.same([0])
fitted = es.fit_vectors(states, states, es.align(states, states, "identity"), own)

plain = demo.world.plain_texts(20)
candidates = {"fitted": fitted, "random": random_directions(states, seed=0).select([0])}
found = es.calibrate(model, candidates, plain, tokenizer, budget=0.1)

questions = demo.world.questions("test")
prompts = [q.prompt for q in questions]
choices = [[f" {c}" for c in q.choices] for q in questions]
right = torch.tensor([q.choices.index(q.answers[demo.world.SPECIALIST]) for q in questions])
for name, vectors in candidates.items():
    with es.attach(model, vectors, strength=found[name].strength):
        answers = choice_probabilities(model, tokenizer, prompts, choices).argmax(dim=1)
    print(
        f"{name:8}  strength {found[name].strength:.3f}  costs {found[name].divergence:.3f} nats "
        f"per token  gives the specialist's answer to {(answers == right).double().mean():.0%}"
    )
