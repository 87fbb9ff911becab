"""What goes through a model, and what comes out of its layers."""

from contextlib import contextmanager


class Seen:
    """Counts the examples that go through a model."""

    def __init__(self, model):
        self.examples, self._model = 0, model

    def __enter__(self):
        self._hook = self._model.model.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def _count(self, module, args, kwargs):
        self.examples += len(kwargs["input_ids"])

    def __exit__(self, *_):
        self._hook.remove()


def hidden_of(output):
    """A layer's hidden states; in releases of transformers before 5 all layers return tuples."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def outputs_of(layers):
    """A list that grows by the hidden states ``[batch, tokens, D]`` of each layer that runs."""
    seen = []
    handles = [
        layer.register_forward_hook(lambda module, args, output: seen.append(hidden_of(output)))
        for layer in layers
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
