"""One model, one batch, other vectors for every request.

python examples/vectors_per_request.py
"""

import torch

import expertsteer as es
from expertsteer import demo

model, tokenizer = demo.load("target")
contrast = demo.contrast_set(200)
states = es.capture(model, tokenizer, contrast)

# The target's own direction between the dialects serves both ways.
own = es.LayerPairing.same([0])
coast = es.fit_vectors(states, states, es.align(states, states, "identity"), own, "mean_difference")
library = {"coast": coast, "hill": -coast}

question = demo.world.questions("test")[6]
questions = [question.prompt] * 4
tokenizer.padding_side = "left"
batch = tokenizer(questions, return_tensors="pt", padding=True)
batch = {name: batch[name] for name in ("input_ids", "attention_mask")}

with es.attach(model, library, positions="all", strength=0.8) as steering:
    requests = ["coast", "hill", None, {"coast": 0.5, "hill": 0.25}]  # one entry per sequence
    steering.set_rows(requests)
    steered = model.generate(**batch, max_new_tokens=1, do_sample=False)
    steering.set_rows([None] * 4)
    plain = model.generate(**batch, max_new_tokens=1, do_sample=False)

print(question.prompt, question.answers)
for request, before, after in zip(requests, plain, steered):
    words = [tokenizer.decode(tokens[-1]) for tokens in (before, after)]
    print(f"{request!s:32}{words[0]:10} -> {words[1]}")
assert torch.equal(plain[2], steered[2])  # the request without vectors is not touched
