"""An environment, a tool and an expert for medvista-ray, in a package of their own."""
