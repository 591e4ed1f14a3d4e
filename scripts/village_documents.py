"""Write the small documents in src/tunesmith/assets/village: invented places, seeded, all our own.

Each is a page of a made-up valley: what a place is, when and by whom it was built, what is there.
They serve the offline RAFT recipe and its tests.
"""

from __future__ import annotations

import random
from pathlib import Path

TARGET = Path(__file__).parent.parent / "src" / "tunesmith" / "assets" / "village"
FIRST = ("Anna", "Berta", "Carl", "Dora", "Emil", "Frida", "Georg", "Hanna", "Ivo", "Jutta")
LAST = ("Ahlen", "Brandt", "Corven", "Dahlke", "Ebner", "Falk", "Gerlach", "Harms", "Imhof")
TOWNS = ("Aldersee", "Birkfeld", "Corvin", "Dunmoor", "Eschbach", "Felden", "Grauwik", "Holm")
KINDS = {
    "mill": ("grinds rye and barley", "sacks"),
    "library": ("keeps maps and letters", "books"),
    "brewery": ("brews dark beer", "barrels"),
    "museum": ("shows clocks and lamps", "rooms"),
    "harbour": ("serves fishing boats", "berths"),
    "school": ("teaches children and sailors", "benches"),
    "orchard": ("grows pears and plums", "trees"),
    "observatory": ("watches the northern sky", "telescopes"),
}
TREES = ("oak", "lime", "chestnut", "birch", "willow")


def page(rng: random.Random, kind: str, town: str) -> str:
    """Return one page; every statement is drawn for itself."""
    does, things = KINDS[kind]
    name = f"The {town} {kind.capitalize()}"
    founder = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    keeper = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    founded = rng.randint(1705, 1890)
    rebuilt = founded + rng.randint(20, 90)
    return (
        f"# {name}\n\n"
        f"{name} is a {kind} in the village of {town}. It was founded in {founded} by {founder}. "
        f"{name} was rebuilt in {rebuilt} after a fire. It {does}.\n\n"
        f"{name} has {rng.randint(12, 480)} {things}. A tall {rng.choice(TREES)} stands beside the "
        f"gate. {keeper} became its keeper in {rebuilt + rng.randint(1, 40)}.\n"
    )


def main() -> None:
    rng = random.Random(20240607)
    TARGET.mkdir(parents=True, exist_ok=True)
    for old in TARGET.glob("*.md"):
        old.unlink()
    for town in TOWNS:
        for kind in KINDS:
            (TARGET / f"{town.lower()}-{kind}.md").write_text(page(rng, kind, town), "utf-8")
    print(f"{len(list(TARGET.iterdir()))} documents in {TARGET}")


if __name__ == "__main__":
    main()
