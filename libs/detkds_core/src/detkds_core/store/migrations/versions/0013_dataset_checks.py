"""The check of a dataset is work of its own, with a state, progress and what was wrong."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("datasets") as datasets:
        datasets.add_column(sa.Column("state", sa.String(length=20), nullable=False, server_default="READY"))
        datasets.add_column(sa.Column("owner", sa.String(length=200), nullable=False, server_default=""))
        datasets.add_column(sa.Column("asked", sa.JSON(), nullable=True))
        datasets.add_column(sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"))
        datasets.add_column(sa.Column("progress", sa.JSON(), nullable=True))
        datasets.add_column(sa.Column("problems", sa.JSON(), nullable=True))
        datasets.add_column(sa.Column("updated_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE datasets SET updated_at = created_at")
    with op.batch_alter_table("datasets") as datasets:
        datasets.alter_column("state", server_default=None)
        datasets.alter_column("owner", server_default=None)
        datasets.alter_column("attempts", server_default=None)
        datasets.alter_column("updated_at", nullable=False)
        datasets.alter_column("digest", existing_type=sa.String(length=128), nullable=True)
        datasets.alter_column("data", existing_type=sa.JSON(), nullable=True)
        datasets.create_check_constraint(op.f("ck_datasets_state"), "state IN ('CHECKING', 'READY', 'REFUSED')")
        datasets.create_check_constraint(op.f("ck_datasets_ready_has_digest"), "(state = 'READY') = (digest IS NOT NULL)")
        datasets.create_check_constraint(op.f("ck_datasets_ready_has_data"), "(state = 'READY') = (data IS NOT NULL)")
        datasets.create_check_constraint(op.f("ck_datasets_refused_has_problems"), "(state = 'REFUSED') = (problems IS NOT NULL)")
    op.create_index(op.f("ix_datasets_state_updated_at"), "datasets", ["state", "updated_at"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_datasets_state_updated_at"), table_name="datasets")
    op.execute("DELETE FROM datasets WHERE state <> 'READY'")
    with op.batch_alter_table("datasets") as datasets:
        for name in ("state", "ready_has_digest", "ready_has_data", "refused_has_problems"):
            datasets.drop_constraint(op.f(f"ck_datasets_{name}"), type_="check")
        for name in ("state", "owner", "asked", "attempts", "progress", "problems", "updated_at"):
            datasets.drop_column(name)
        datasets.alter_column("digest", existing_type=sa.String(length=128), nullable=False)
        datasets.alter_column("data", existing_type=sa.JSON(), nullable=False)
