"""What goes through a model, counted."""


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
