"""The registered model: MLflow runs this file to serve a governor; no class of it is ever pickled.

MLflow copies it into every registered model, with the parts of Flyball that it imports beside it.
"""

from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from flyball.platform.governor import Governor

__all__ = ["GOVERNOR_ARTIFACT", "GovernorModel"]

GOVERNOR_ARTIFACT = "governor"


class GovernorModel(PythonModel):
    """Images in; prediction, label, confidence, utilization and net MACs out, a row an image.

    A pose network's rows have their key points too.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the weights; MLflow passes the argument by this name."""
        self.governor = Governor.load(context.artifacts[GOVERNOR_ARTIFACT])

    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Answers images.

        Args:
            context: of MLflow; not used after loading.
            model_input: float32 in [0, 1], (B, C, H, W), or clips (B, C, T, H, W).
            params: `budget`, the mean net throttle ratio to hold; left out or None spends what
                the reward taught.
        """
        budget = (params or {}).get("budget")
        return pd.DataFrame(self.governor.predict(model_input, budget=budget).columns())


set_model(GovernorModel())
