"""The settings of a run: the models behind the UI's form, the command's options and Python's arguments.

Each setting is described once, here. The models hold no secrets: keys and passwords come from blocks or
from the environment, so settings can be stored with a run.
"""

from imagemill.settings.api import Api, ApiSettings, OneApi, RouteSettings
from imagemill.settings.calibration import Budget
from imagemill.settings.catalog import (
    CATALOG_COLUMNS,
    PARAM_PREFIX,
    STORED_FRAME,
    VARIED_COLUMNS,
    Catalog,
    CatalogSettings,
    read_template,
)
from imagemill.settings.execution import RUN_ID, ExecutionSettings
from imagemill.settings.group import form_title, input_error
from imagemill.settings.limits import LimitSettings
from imagemill.settings.output import Output, OutputSettings
from imagemill.settings.picture import PictureSettings
from imagemill.settings.quality import QualitySettings
from imagemill.settings.refresh import RefreshSettings
from imagemill.settings.regressions import RegressionSettings
from imagemill.settings.run import GROUPS, RunSettings, only_route

__all__ = [
    "CATALOG_COLUMNS",
    "GROUPS",
    "PARAM_PREFIX",
    "RUN_ID",
    "STORED_FRAME",
    "VARIED_COLUMNS",
    "Api",
    "ApiSettings",
    "Budget",
    "Catalog",
    "CatalogSettings",
    "ExecutionSettings",
    "LimitSettings",
    "OneApi",
    "Output",
    "OutputSettings",
    "PictureSettings",
    "QualitySettings",
    "RefreshSettings",
    "RegressionSettings",
    "RouteSettings",
    "RunSettings",
    "form_title",
    "input_error",
    "only_route",
    "read_template",
]
