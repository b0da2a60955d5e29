"""``flwr-robust``: all verbs under one command."""

from __future__ import annotations

from typing import Annotated

import typer

from flwr_robust import __version__
from flwr_robust.cli import audit, components, diagnose, doctor, guarantees, incident, league, redteam, studies

__all__ = ["app"]

_STATUS = (
    "Exit status: 0 all is well; 1 a finding, or something failed; 2 wrong input; 130 and 143 stopped by SIGINT and "
    "SIGTERM, with what is finished kept."
)

app = typer.Typer(
    help="Federated learning with Flower that holds up when some clients lie: look up, run, attack, prove.",
    epilog=_STATUS,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

_LOOK_UP, _KNOW, _STUDY, _ATTACK = "Look up", "Know before you trust", "Study", "Attack"
_PROVE, _INCIDENT = "Prove and take back", "After an incident"

app.command("list", rich_help_panel=_LOOK_UP)(components.list_command)
app.command("describe", rich_help_panel=_LOOK_UP)(components.describe_command)
app.command("doctor", rich_help_panel=_LOOK_UP)(doctor.doctor_command)
app.command("certify", rich_help_panel=_KNOW)(guarantees.certify_command)
app.command("plan", rich_help_panel=_KNOW)(guarantees.plan_command)
app.command("demo", rich_help_panel=_STUDY)(studies.demo_command)
app.command("run", rich_help_panel=_STUDY)(studies.run_command)
app.command("report", rich_help_panel=_STUDY)(studies.report_command)
app.command("reproduce", rich_help_panel=_STUDY)(studies.reproduce_command)
app.command("diagnose", rich_help_panel=_STUDY)(diagnose.diagnose_command)
if studies.in_clone():
    app.command("record", rich_help_panel=_STUDY)(studies.record_command)
app.add_typer(redteam.red_team, name="red-team", rich_help_panel=_ATTACK)
app.command("league", rich_help_panel=_ATTACK)(league.league_command)
app.add_typer(audit.audit, name="audit", rich_help_panel=_PROVE)
app.command("card", rich_help_panel=_PROVE)(audit.card_command)
app.command("hash", rich_help_panel=_PROVE)(audit.hash_command)
app.command("rollback", rich_help_panel=_PROVE)(audit.rollback_command)
app.command("incident", rich_help_panel=_INCIDENT)(incident.incident_command)
app.command("replay", rich_help_panel=_INCIDENT)(incident.replay_command)
app.command("ban", rich_help_panel=_INCIDENT)(incident.ban_command)
app.command("release", rich_help_panel=_INCIDENT)(incident.release_command)
app.command("erase", rich_help_panel=_INCIDENT)(incident.erase_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flwr-robust {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
