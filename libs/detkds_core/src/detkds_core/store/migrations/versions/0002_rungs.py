"""Rungs: candidates are measured several times, at rungs and with seeds; gates refuse some; a ledger holds every decision."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
DOCUMENT = sa.JSON(none_as_null=True)
BEFORE = "state IN ('PROPOSED', 'MEASURED', 'INFEASIBLE')"
AFTER = "state IN ('PROPOSED', 'MEASURED', 'INFEASIBLE', 'REJECTED', 'DUPLICATE')"


def upgrade() -> None:
    with op.batch_alter_table("candidates") as table:
        table.drop_index(op.f("ix_candidates_job_id"))
        table.drop_index(op.f("ix_candidates_search_id_state_ap"))
        table.drop_constraint(op.f("fk_candidates_job_id"), type_="foreignkey")
        table.drop_constraint(op.f("ck_candidates_state"), type_="check")
        table.drop_column("job_id")
        table.add_column(sa.Column("audit", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("rung", sa.Integer(), nullable=True))
        table.add_column(sa.Column("rejected", DOCUMENT, nullable=True))
        table.add_column(sa.Column("same_as", sa.Integer(), nullable=True))
        table.add_column(sa.Column("resolved", DOCUMENT, nullable=True))
        table.add_column(sa.Column("look", DOCUMENT, nullable=True))
        table.create_check_constraint(op.f("ck_candidates_state"), AFTER)
        table.create_index(op.f("ix_candidates_search_id_state_rung_ap"), ["search_id", "state", "rung", "ap"])
    with op.batch_alter_table("confirmations") as table:
        table.drop_column("selection_ap")
    op.execute("UPDATE candidates SET rung = iterations WHERE state = 'MEASURED'")
    op.create_table(
        "trials",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("search_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("candidate", sa.Integer(), nullable=False),
        sa.Column("rung", sa.Integer(), nullable=False),
        sa.Column("replicate", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.Column("ap", sa.Double(), nullable=True),
        sa.Column("ap50", sa.Double(), nullable=True),
        sa.Column("ap75", sa.Double(), nullable=True),
        sa.Column("images", sa.Integer(), nullable=True),
        sa.Column("iterations", sa.Integer(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("failure", DOCUMENT, nullable=True),
        sa.Column("rejected", DOCUMENT, nullable=True),
        sa.Column("same_as", sa.Integer(), nullable=True),
        sa.Column("sketch", DOCUMENT, nullable=True),
        sa.Column("ratio", sa.Double(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.CheckConstraint("(state = 'INFEASIBLE') = (failure IS NOT NULL)", name=op.f("ck_trials_infeasible_has_failure")),
        sa.CheckConstraint("state <> 'MEASURED' OR ap IS NOT NULL", name=op.f("ck_trials_measured_has_ap")),
        sa.CheckConstraint(AFTER, name=op.f("ck_trials_state")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_trials_job_id")),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_trials_search_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trials")),
        sa.UniqueConstraint("search_id", "number", "candidate", name=op.f("uq_trials_search_id_number_candidate")),
    )
    op.create_index(op.f("ix_trials_job_id"), "trials", ["job_id"], unique=False)
    op.create_table(
        "ledger",
        sa.Column("search_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_ledger_search_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("search_id", "number", name=op.f("pk_ledger")),
    )


def downgrade() -> None:
    op.drop_table("ledger")
    op.drop_table("trials")
    with op.batch_alter_table("confirmations") as table:
        table.add_column(sa.Column("selection_ap", sa.Double(), nullable=True))
    # The first schema has no such states. A candidate without a figure is infeasible there; its index stays, for others name it as parent.
    old = sa.table("candidates", sa.column("state"), sa.column("failure", DOCUMENT))
    failure = {"kind": "refused", "detail": "refused before its training, or the double of another candidate"}
    op.execute(old.update().where(old.c.state.in_(("REJECTED", "DUPLICATE"))).values(state="INFEASIBLE", failure=failure))
    with op.batch_alter_table("candidates") as table:
        table.drop_index(op.f("ix_candidates_search_id_state_rung_ap"))
        table.drop_constraint(op.f("ck_candidates_state"), type_="check")
        for column in ("audit", "rung", "rejected", "same_as", "resolved", "look"):
            table.drop_column(column)
        table.add_column(sa.Column("job_id", sa.String(length=36), nullable=True))
        table.create_foreign_key(op.f("fk_candidates_job_id"), "jobs", ["job_id"], ["id"])
        table.create_check_constraint(op.f("ck_candidates_state"), BEFORE)
        table.create_index(op.f("ix_candidates_job_id"), ["job_id"])
        table.create_index(op.f("ix_candidates_search_id_state_ap"), ["search_id", "state", "ap"])
