"""The task families of the demo set, one file each: draw a scene, turn it into a task and its reference."""
