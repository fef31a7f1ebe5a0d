"""Recipes: everything that can be asked for, from TOML, the command line or Python."""

from onnxcompress.recipe.recipe import CLEANUP, Recipe

__all__ = ["CLEANUP", "Recipe"]
