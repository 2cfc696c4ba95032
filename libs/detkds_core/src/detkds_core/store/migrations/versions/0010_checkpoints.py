"""Checkpoints that people bring, and which jobs' files are gone."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
DOCUMENT = sa.JSON()


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("detector", sa.String(length=200), nullable=True),
        sa.Column("wanted_classes", DOCUMENT, nullable=True),
        sa.Column("classes", DOCUMENT, nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.CheckConstraint("state IN ('UPLOADING', 'READY', 'REFUSED')", name=op.f("ck_checkpoints_state")),
        sa.CheckConstraint("(state = 'READY') = (digest IS NOT NULL)", name=op.f("ck_checkpoints_ready_has_digest")),
        sa.CheckConstraint("(state = 'REFUSED') = (reason IS NOT NULL)", name=op.f("ck_checkpoints_refused_has_reason")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
    )
    op.create_index(op.f("ix_checkpoints_created_at_id"), "checkpoints", ["created_at", "id"], unique=False)
    op.create_index(op.f("ix_checkpoints_owner_created_at_id"), "checkpoints", ["owner", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_checkpoints_state_updated_at"), "checkpoints", ["state", "updated_at"], unique=False)
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("pruned", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("jobs") as table:
        table.alter_column("pruned", server_default=None)
    op.create_index(op.f("ix_jobs_pruned_finished_at"), "jobs", ["pruned", "finished_at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_pruned_finished_at"), table_name="jobs")
    with op.batch_alter_table("jobs") as table:
        table.drop_column("pruned")
    op.drop_table("checkpoints")
