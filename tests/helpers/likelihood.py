"""Log-probabilities by their definition: one unpadded pass in double precision."""

import torch


def log_probability(model, ids, start):
    """Of the tokens ``ids[start:]``, summed."""
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
    return float(sum(scores[i - 1, ids[i]] for i in range(start, len(ids))))


def continued(tokenizer, prompt, continuation):
    """The tokens of both together, and where those of the continuation start."""
    return tokenizer(prompt + continuation)["input_ids"], len(tokenizer(prompt)["input_ids"])
