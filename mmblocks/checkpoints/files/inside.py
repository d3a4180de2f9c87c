"""Which files belong to a folder. A folder is data from elsewhere: its links must not lead out of it."""

import re
from pathlib import Path


def checked(folder: Path, file: Path, what: str) -> Path:
    """``file`` of ``folder``, unless it is a link that leads elsewhere.

    Raises:
        ValueError: it leads out; ``what`` says who named it.
    """
    root, target = folder.resolve(), file.resolve()
    # In the Hub's cache every file is a link from <repository>/snapshots/<revision>/ to <repository>/blobs/ ...
    in_hub_cache = target.parent.name == "blobs" and target.parents[1] / "snapshots" in root.parents
    # ... or, where repositories share what they have in common, on to <cache>/blobs/<two digits>/.
    store = target.parents[1] if len(target.parents) > 2 else target.parent
    if store.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name) and target.parent.name == target.name[:2]:
        repository = next((place for place in root.parents if place.parent == store.parent), root)
        in_hub_cache = repository.name.startswith("models--") and repository / "snapshots" in root.parents
    if target.parent != root and not in_hub_cache:
        raise ValueError(f"{what}, a link that leads out of the folder, to {target}")
    return file
