"""What a built wheel must do anywhere: import its extension, without torch."""

import importlib.util
import sys
import sysconfig
from pathlib import Path


def main() -> None:
    package = Path(sysconfig.get_path("purelib")) / "expertsteer"
    (extension,) = [*package.glob("_C.*.so"), *package.glob("_C.*.pyd")]
    spec = importlib.util.spec_from_file_location("_C", extension)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {
        "torch is not imported": "torch" not in sys.modules,
        "compiled without CUDA": module.with_cuda is False,
        "typed": (package / "py.typed").is_file() and (package / "_C.pyi").is_file(),
        "the demo's checkpoints": (package / "demo" / "checkpoints" / "target").is_dir(),
    }
    missing = [name for name, holds in found.items() if not holds]
    if missing:
        raise SystemExit(f"{extension}: not so: {', '.join(missing)}")
    print(f"{extension.name}: {', '.join(found)}")


if __name__ == "__main__":
    main()
