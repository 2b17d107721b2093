"""Make the base checkpoint that ships with the package: `python -m medvista_ray.recipes.tiny_base`."""
