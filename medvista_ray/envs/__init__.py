"""Gymnasium environments. Importing this registers them by name and loads nothing heavy."""

from gymnasium.envs.registration import register

register(id="medvista/MedicalVQA-v0", entry_point="medvista_ray.envs.medical_vqa:MedicalVQAEnv")
register(
    id="medvista/InteractiveSegmentation-v0",
    entry_point="medvista_ray.envs.interactive_segmentation:InteractiveSegmentationEnv",
)
register(id="medvista/Grounding-v0", entry_point="medvista_ray.envs.grounding:GroundingEnv")
