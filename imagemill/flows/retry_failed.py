"""Retries the failed jobs of a run, under the same run id."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from prefect import flow

from imagemill.pipeline import finish, generate, open_run, outcome
from imagemill.runs.folder import RunFolder
from imagemill.runs.recorded_settings import settings_to_go_on
from imagemill.runs.review_choices import ReviewChoices
from imagemill.runs.summary import RunSummary
from imagemill.runs.user_errors import one_sentence
from imagemill.settings import Api, ExecutionSettings, LimitSettings, Output
from imagemill.tasks.apply_choices import apply_choices, choices_in_use
from imagemill.tasks.approval import ask_approval, ask_loss_approval
from imagemill.tasks.prepare import left_to_do, prepare
from imagemill.tasks.reopen_failed import reopen_failed


@flow(name="retry-failed", persist_result=True, result_serializer="json")
@one_sentence
def retry_failed(
    run_id: str,
    permanent: bool = False,  # noqa: FBT001, FBT002 - a field of the form
    output: Output | None = None,
    limits: LimitSettings | None = None,
    execution: ExecutionSettings | None = None,
    choices: ReviewChoices | None = None,
    base_url: str | None = None,
    judge: str | None = None,
    *,
    api: Api | None = None,
) -> RunSummary:
    """Retry the failed jobs of a run, or make suspect pictures anew. Earlier attempts and their cost stay.

    Args:
        run_id: The id of the run.
        permanent: Also retry jobs that would fail again with the same input, such as refused prompts.
        output: Where the images and records are, if another machine ran it; in Python, s3://BUCKET/PREFIX is
            enough.
        limits: Limits on speed and cost, if not as before.
        execution: How the run is executed and where its state is stored, if not as before.
        choices: The choices of a review, as imagemill review saves them: instead of failed jobs, the pictures
            to make anew are retried.
        base_url: The API's address, where it is not the vendor's own and another machine began the run.
        judge: The judge, where there is one and another machine began the run.
        api: Which image API and model to use; those of the run, perhaps with other time limits.

    Returns:
        The run's summary.

    Raises:
        InputError: there is no such run, or the choices are not for it.
        RunStoppedError: the run stopped early and can be resumed.
    """
    run_id = run_id.strip()
    changed = {"limits": limits, "execution": execution}
    named = () if execution is None else ("store", "scheduler")
    settings = settings_to_go_on(run_id, output, base_url=base_url, judge=judge, named=named).model_copy(
        update={name: value for name, value in changed.items() if value is not None}
    )
    if api is not None:
        several = api if isinstance(api, list) else []
        settings = settings.model_copy(update={"api": several[0] if several else api, "routes": several})
    plan = {"run_id": run_id, "keep_plan": True}
    settings = settings.model_copy(update={"execution": settings.execution.model_copy(update=plan)})
    if choices is not None:
        choices.check(run_id, RunFolder(run_id).plan)
    with open_run(settings) as run:
        if choices is None:
            reopen_failed(run.session, permanent=permanent)
        prepared = prepare(run.session, reviewed=choices is not None)
        if choices is not None:
            if prepared.newer is not None:
                choices = choices_in_use(run.session, choices, prepared.newer)
            apply_choices(run.session, choices)
        else:  # those whose failure only the log knew: another machine ran them
            reopen_failed(run.session, permanent=permanent, prepared=True)
        unfinished = run.session.wait(run.session.store.unfinished_numbers)
        prepared = left_to_do(run.session, prepared.counts, unfinished, prepared.loss, prepared.newer)
        ask_loss_approval(prepared.loss)
        ask_approval(prepared.images, prepared.cost_usd, settings.limits.approve_above_usd, prepared.counts)
        generate(run, prepared)
        summary = finish(run, prepared)
    return outcome(run, prepared, summary)
