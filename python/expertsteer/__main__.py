"""The program ``expertsteer``, alone in its process."""

from .cli import main as run
from .support.allocator import keep_freed_memory


def main() -> None:
    """Entry point: what is set here is set for the whole process."""
    keep_freed_memory()
    run()


if __name__ == "__main__":
    main()
