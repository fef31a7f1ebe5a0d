"""The table of options in docs/recipe.md, from the recipe's declarations.

`python -m tests.docs.option_table` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from onnxcompress.recipe import Recipe
from onnxcompress.recipe.kinds import Flag
from onnxcompress.recipe.options import GROUPS, options_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipe.md"
START = "<!-- options: written by python -m tests.docs.option_table -->\n"
END = "<!-- end of options -->\n"


def option_table() -> str:
    """Return the options in Markdown, group by group."""
    known, default = options_of(Recipe), Recipe().to_json()
    lines = []
    for group, title in GROUPS.items():
        lines += [f"\n### {title[:1].upper()}{title[1:]}\n", "| key | default | |", "|---|---|---|"]
        for name, option in known.items():
            if option.group != group:
                continue
            value = default[name]
            text = option.help
            if isinstance(option.kind, Flag):
                text = f"`{str(not value).lower()}`: {text}"
                shown = str(value).lower()
            else:
                shown = "" if value in (None, [], {}) else str(value[0] if isinstance(value, list) else value)
            lines.append(f"| `{name.replace('_', '-')}` | {shown} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n\n"


def with_table(page: str) -> str:
    """Return the page with the current table between its marks."""
    head, _, rest = page.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}{option_table()}{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
