"""What a search has spent stands beside it, where it was added up over all candidates whenever somebody looked; and lists of jobs have
indexes for their filters."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

FILTERS = ("owner", "search_id", "state")


def upgrade() -> None:
    for name in ("spent", "inherited"):
        op.add_column("searches", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE searches SET spent ="
        " coalesce((SELECT sum(iterations) FROM candidates WHERE candidates.search_id = searches.id), 0),"
        " inherited ="
        " coalesce((SELECT sum(iterations) FROM trials WHERE trials.search_id = searches.id AND trials.job_id IS NULL), 0)"
    )
    for column in FILTERS:
        op.create_index(op.f(f"ix_jobs_{column}_created_at_id"), "jobs", [column, "created_at", "id"], unique=False)


def downgrade() -> None:
    for column in reversed(FILTERS):
        op.drop_index(op.f(f"ix_jobs_{column}_created_at_id"), table_name="jobs")
    with op.batch_alter_table("searches") as searches:
        searches.drop_column("inherited")
        searches.drop_column("spent")
