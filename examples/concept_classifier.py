"""The Recursive Feature Machine by itself: how well can each layer tell a concept?

python examples/concept_classifier.py
"""

import expertsteer as es
from expertsteer import demo

states = es.capture(*demo.load("target"), demo.contrast_set(600))
train, held = range(400), range(400, 600)

# All layers are one batch of independent problems: [L, N, D].
x, y = states.states.float(), states.labels
rfm = es.RFM(bandwidth=3.0, reg=0.1, iters=3)
rfm.fit(x[:, train], y[train], x[:, held], y[held])
for layer, auc in zip(states.layers, rfm.score(x[:, held], y[held], "auc").tolist()):
    print(f"layer {layer}: AUC {auc:.3f}")
print(rfm.plan_.reason)
