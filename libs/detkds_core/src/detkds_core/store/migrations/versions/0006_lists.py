"""Lists: notes, tags and the request of searches and distillations, the pair in columns, the words of a result's policy, indexes."""

import sqlalchemy as sa
from alembic import op

from detkds_core.store.labels import words

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NAME, ID = sa.String(length=200), sa.String(length=36)
DOCUMENT = sa.JSON(none_as_null=True)
PAIR = ("teacher", "student")
LABELS = {"search_tags": "searches", "distillation_tags": "distillations", "result_words": "results"}
INDEXES = {
    "searches": (
        *(("updated_at",), ("owner", "updated_at"), ("finished_at",), ("owner", "finished_at")),
        *((column, "created_at") for column in ("dataset", *PAIR, "algorithm")),
    ),
    "distillations": (
        *(("updated_at",), ("owner", "updated_at"), ("finished_at",), ("owner", "finished_at")),
        *((column, "created_at") for column in ("dataset", *PAIR)),
    ),
    "results": (("ap",), ("owner", "ap"), *((column, "created_at") for column in ("dataset", *PAIR))),
}


def upgrade() -> None:
    for name in ("searches", "distillations"):
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column("notes", sa.Text(), nullable=False, server_default=""))
            for column in PAIR:
                table.add_column(sa.Column(column, NAME, nullable=False, server_default=""))
            table.add_column(sa.Column("request", DOCUMENT, nullable=True))
            table.add_column(sa.Column("cloned_from", ID, nullable=True))
            table.create_foreign_key(op.f(f"fk_{name}_cloned_from"), name, ["cloned_from"], ["id"])
            if name == "searches":
                table.add_column(sa.Column("algorithm", sa.String(length=20), nullable=False, server_default=""))
    with op.batch_alter_table("results") as table:
        for column in PAIR:
            table.add_column(sa.Column(column, NAME, nullable=False, server_default=""))
    for name, subject in LABELS.items():
        op.create_table(
            name,
            sa.Column("label", sa.String(length=40), nullable=False),
            sa.Column("subject_id", ID, nullable=False),
            sa.ForeignKeyConstraint(["subject_id"], [f"{subject}.id"], name=op.f(f"fk_{name}_subject_id"), ondelete="CASCADE"),
            sa.PrimaryKeyConstraint("label", "subject_id", name=op.f(f"pk_{name}")),
        )
        op.create_index(op.f(f"ix_{name}_subject_id"), name, ["subject_id"], unique=False)
    fill()
    for name, indexes in INDEXES.items():
        for columns in indexes:
            op.create_index(op.f(f"ix_{name}_{'_'.join((*columns, 'id'))}"), name, [*columns, "id"], unique=False)
    op.create_index(op.f("ix_trials_search_id_candidate_number"), "trials", ["search_id", "candidate", "number"], unique=False)


def fill() -> None:
    """What the columns hold stands in the documents."""
    connection = op.get_bind()
    for name in ("searches", "distillations"):
        table = sa.table(name, *map(sa.column, ("id", *PAIR, "algorithm")), sa.column("spec", DOCUMENT))
        for identity, spec in connection.execute(sa.select(table.c.id, table.c.spec)).all():
            values = {column: spec[column].get("detector", "") for column in PAIR if column in spec}
            if name == "searches" and "algorithm" in spec:
                values["algorithm"] = spec["algorithm"]
            if values:
                connection.execute(table.update().where(table.c.id == identity).values(**values))
    for column in PAIR:
        op.execute(
            f"UPDATE results SET {column} = COALESCE((SELECT {column} FROM searches WHERE searches.id = results.search_id),"
            f" (SELECT {column} FROM distillations WHERE distillations.id = results.distillation_id), '')"
        )
    results = sa.table("results", sa.column("id"), sa.column("policy", DOCUMENT))
    labels = sa.table("result_words", sa.column("label"), sa.column("subject_id"))
    rows = connection.execute(sa.select(results.c.id, results.c.policy)).all()
    found = [{"label": word, "subject_id": identity} for identity, policy in rows for word in sorted(words(policy))]
    if found:
        connection.execute(labels.insert(), found)


def downgrade() -> None:
    op.drop_index(op.f("ix_trials_search_id_candidate_number"), table_name="trials")
    for name, indexes in INDEXES.items():
        for columns in indexes:
            op.drop_index(op.f(f"ix_{name}_{'_'.join((*columns, 'id'))}"), table_name=name)
    for name in LABELS:
        op.drop_table(name)
    with op.batch_alter_table("results") as table:
        for column in PAIR:
            table.drop_column(column)
    for name in ("searches", "distillations"):
        with op.batch_alter_table(name) as table:
            table.drop_constraint(op.f(f"fk_{name}_cloned_from"), type_="foreignkey")
            for column in ("notes", *PAIR, "request", "cloned_from", *(("algorithm",) if name == "searches" else ())):
                table.drop_column(column)
