"""`guerdon compare`: runs of any recipe side by side, in one report that stands on its own."""
