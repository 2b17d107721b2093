"""Run the command line as `python -m medvista_ray`."""

from medvista_ray.cli.main import main

if __name__ == "__main__":
    main()
