"""The four steps, one call each, on the bundled pair of models.

python examples/fit_and_steer.py
"""

import expertsteer as es
from expertsteer import demo

contrast = demo.contrast_set()  # of your own: es.ContrastSet.from_jsonl("contrast.jsonl")

# Capture: one state per example and layer. The models are never needed in memory together.
expert = es.capture(*demo.load("expert"), contrast)
model, tokenizer = demo.load("target")
target = es.capture(model, tokenizer, contrast)

# Align the expert's states with the target's, pair layers, fit one direction per pair.
alignment = es.align(expert, target)
information = es.mutual_information(expert.states, target.states)
pairing = es.pair_layers(information, k=4, rule="lowest")
vectors = es.fit_vectors(expert, target, alignment, pairing)
print(pairing)

# Steer. On the way out the model is what it was, bit for bit.
questions = demo.world.questions("test")[4:12]
tokenizer.padding_side = "left"
batch = tokenizer([q.prompt for q in questions], return_tensors="pt", padding=True)
batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
answers = {}
with es.attach(model, vectors.select([0, 1]), strength=0.0) as steering:
    for strength in (0.0, 0.6):
        steering.set(strength=strength)
        tokens = model.generate(**batch, max_new_tokens=1, do_sample=False)
        answers[strength] = tokenizer.batch_decode(tokens[:, -1:])
print(f"{'question':40}{'unsteered':12}{'steered':12}{'what the expert knows'}")
for question, before, after in zip(questions, *answers.values()):
    print(f"{question.prompt:40}{before:12}{after:12}{question.answers['coast']}")
