"""Text templates with a placeholder for the prompt, as in "a photo of {prompt}"."""

from __future__ import annotations

import re

from guidedgen.basics.errors import BadValue


def check_template(name: str, template: str) -> None:
    """Raises BadValue where the template of the option `name` is empty, or holds another word in braces than {prompt}."""
    if not template.strip():
        raise BadValue(name, template, "is empty; {prompt} stands for the prompt")
    if wrong := set(re.findall(r"\{.*?\}", template)) - {"{prompt}"}:
        raise BadValue(name, template, f"{min(wrong)} is unknown; {{prompt}} stands for the prompt")


def fill(template: str, prompt: str) -> str:
    """The template with the prompt filled in."""
    return template.replace("{prompt}", prompt)
