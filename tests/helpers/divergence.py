"""The price of steering by its definition: a pass for each text, alone and in double precision."""

import torch

import expertsteer as es


def one_by_one(model, tokenizer, vectors, strength, texts, measure="kl", **options):
    """The divergence from unpadded single passes in double precision."""
    total = count = 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            before = model(ids).logits[0].double().log_softmax(-1)
            with es.attach(model, vectors, strength=strength, **options):
                after = model(ids).logits[0].double().log_softmax(-1)
        if measure == "kl":
            total += float((before.exp() * (before - after)).sum())
            count += ids.shape[1]
        else:
            told = ids[0, 1:].unsqueeze(1)
            total += float((before - after)[:-1].gather(1, told).sum())
            count += len(told)
    return total / count if measure == "kl" else torch.tensor(total / count).exp().item()
