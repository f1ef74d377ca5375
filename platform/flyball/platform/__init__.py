"""Jobs and presets, the stages of the main job, MLflow, reports and the command line.

Imported by module (`flyball.platform.stages`): the governor of a registered model must load without
the rest.
"""

__all__: list[str] = []
