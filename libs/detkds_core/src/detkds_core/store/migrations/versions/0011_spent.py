"""What a search has spent stands beside it: it was added up over all candidates whenever somebody looked."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("spent", "inherited"):
        op.add_column("searches", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE searches SET spent ="
        " coalesce((SELECT sum(iterations) FROM candidates WHERE candidates.search_id = searches.id), 0),"
        " inherited ="
        " coalesce((SELECT sum(iterations) FROM trials WHERE trials.search_id = searches.id AND trials.job_id IS NULL), 0)"
    )


def downgrade() -> None:
    with op.batch_alter_table("searches") as searches:
        searches.drop_column("inherited")
        searches.drop_column("spent")
