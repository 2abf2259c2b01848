"""All settings of a run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, model_validator

from imagemill.settings.api import ApiSettings, OneApi, RouteSettings
from imagemill.settings.calibration import Budget
from imagemill.settings.catalog import Catalog, CatalogSettings
from imagemill.settings.execution import RUN_ID, ExecutionSettings
from imagemill.settings.group import SettingsGroup
from imagemill.settings.limits import LimitSettings
from imagemill.settings.output import Output, OutputSettings
from imagemill.settings.picture import PictureSettings
from imagemill.settings.quality import QualitySettings
from imagemill.settings.refresh import RefreshSettings
from imagemill.settings.regressions import RegressionSettings


def only_route(route: RouteSettings, limits: LimitSettings) -> tuple[ApiSettings, LimitSettings]:
    """A run over one route as a run without routes: its API, and the limits with the route's own.

    Of money and pace, both the route's limit and the run's hold.
    """
    api = ApiSettings(**route.model_dump(include=set(ApiSettings.model_fields)))
    changed: dict[str, float] = {} if route.concurrency is None else {"concurrency": route.concurrency}
    for name in ("max_images_per_minute", "max_cost_usd"):
        both = [most for most in (getattr(route, name), getattr(limits, name)) if most is not None]
        if both:
            changed[name] = min(both)
    return api, limits.model_copy(update=changed)


class RunSettings(SettingsGroup):
    """All settings of a run, with its id: what a shard needs, and what a resume reads."""

    run_id: str
    catalog: Catalog
    api: OneApi
    """Of a run over several routes, the first's."""
    output: Output
    picture: PictureSettings = PictureSettings()
    quality: QualitySettings = QualitySettings()
    limits: LimitSettings = LimitSettings()
    execution: ExecutionSettings = ExecutionSettings()
    refresh: RefreshSettings | None = None
    """Of a refresh; None where the run is none."""
    prune: bool = False
    routes: list[RouteSettings] = Field(default_factory=list)
    """Those of a run over several; none of a run over one."""

    @property
    def apis(self) -> ApiSettings | list[RouteSettings]:
        """The one API, or all routes: what a flow is called with."""
        return self.routes or self.api

    @property
    def providers(self) -> str:
        """The vendors, joined by a plus where there are several."""
        return "+".join(dict.fromkeys(route.provider for route in self.routes)) or self.api.provider

    @model_validator(mode="after")
    def _safe(self) -> RunSettings:
        if not RUN_ID.fullmatch(self.run_id):
            raise ValueError(f"{self.run_id!r} is not a run id: use letters, digits, '.', '_' and '-'")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that must not change when a run is resumed."""
        return {
            "catalog": self.catalog.path,
            "columns": self.catalog.columns,
            "carried columns": self.catalog.carry,
            "limit": self.catalog.limit,
            "prompt template": self.catalog.prompt_template,
            "negative prompt template": self.catalog.negative_prompt_template,
            "variations": self.catalog.variations,
            "varied values": self.catalog.vary,
            "provider": self.api.provider,
            "model": self.api.model,
            "routes": [f"{route.name}={route.provider}/{route.model}" for route in self.routes],
            "output": self.output.uri,
            **{name.replace("_", " "): value for name, value in self.picture},
        }


GROUPS: dict[str, type[BaseModel]] = {
    "catalog": CatalogSettings,
    "api": ApiSettings,
    "output": OutputSettings,
    "picture": PictureSettings,
    "quality": QualitySettings,
    "limits": LimitSettings,
    "execution": ExecutionSettings,
    "refresh": RefreshSettings,
    "regressions": RegressionSettings,
    "budget": Budget,
}
"""The groups of settings, by the name that a flow's parameter has."""
