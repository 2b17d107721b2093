"""Pure graders and rubrics: what an episode earns, from its actions and the task's reference."""
