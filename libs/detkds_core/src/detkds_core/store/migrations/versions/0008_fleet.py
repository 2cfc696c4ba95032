"""A fleet: priorities, the owner of a job, what it needs and what it runs on; workers that drain."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

OWNER = """
UPDATE jobs SET owner = COALESCE(
    (SELECT owner FROM searches WHERE searches.id = jobs.search_id),
    (SELECT owner FROM distillations WHERE distillations.id = jobs.distillation_id),
    ''
)
"""


def upgrade() -> None:
    for name in ("searches", "distillations"):
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
            table.add_column(sa.Column("device_memory_gib", sa.Integer(), nullable=True))
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("owner", sa.String(length=200), nullable=False, server_default=""))
        table.add_column(sa.Column("devices", sa.Integer(), nullable=False, server_default="1"))
        table.add_column(sa.Column("device_memory_gib", sa.Integer(), nullable=True))
        table.add_column(sa.Column("device", sa.String(length=400), nullable=True))
        table.create_index(op.f("ix_jobs_owner_started_at"), ["owner", "started_at"])
    op.execute(OWNER)
    # Distillations came before all searches; now they take turns with them, within the priority that somebody asked for.
    op.execute("UPDATE jobs SET priority = 0 WHERE distillation_id IS NOT NULL")
    op.drop_table("workers")  # those that are there say so again
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("device", sa.String(length=400), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("memory_gib", sa.Integer(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("disk_low", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
        sa.UniqueConstraint("name", name=op.f("uq_workers_name")),
    )


def downgrade() -> None:
    op.drop_table("workers")
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    op.execute("UPDATE jobs SET priority = 10 WHERE distillation_id IS NOT NULL")
    with op.batch_alter_table("jobs") as table:
        table.drop_index(op.f("ix_jobs_owner_started_at"))
        for column in ("owner", "devices", "device_memory_gib", "device"):
            table.drop_column(column)
    for name in ("searches", "distillations"):
        with op.batch_alter_table(name) as table:
            table.drop_column("priority")
            table.drop_column("device_memory_gib")
