"""Pause: searches, distillations and jobs have a state PAUSED."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STATES = {
    "jobs": ("QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "LOST", "DEAD"),
    "searches": ("QUEUED", "RUNNING", "CONFIRMING", "SUCCEEDED", "FAILED", "CANCELLED"),
    "distillations": ("QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "DEAD"),
}


def upgrade() -> None:
    for table, states in STATES.items():
        allow(table, (*states, "PAUSED"))


def downgrade() -> None:
    for table, states in STATES.items():
        op.execute(f"UPDATE {table} SET state = 'QUEUED' WHERE state = 'PAUSED'")
        allow(table, states)


def allow(name: str, states: tuple[str, ...]) -> None:
    constraint = op.f(f"ck_{name}_state")
    with op.batch_alter_table(name) as table:
        table.drop_constraint(constraint, type_="check")
        table.create_check_constraint(constraint, f"state IN ({', '.join(map(repr, states))})")
