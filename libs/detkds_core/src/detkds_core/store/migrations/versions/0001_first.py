"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
DOCUMENT = sa.JSON(none_as_null=True)


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=128), nullable=False),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_datasets")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("topic", sa.String(length=20), nullable=False),
        sa.Column("subject_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_subject_id_id"), "events", ["subject_id", "id"], unique=False)
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "searches",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("dataset", sa.String(length=200), nullable=False),
        sa.Column("dataset_digest", sa.String(length=128), nullable=False),
        sa.Column("errors", sa.Integer(), nullable=False),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'RUNNING', 'CONFIRMING', 'SUCCEEDED', 'FAILED', 'CANCELLED')", name=op.f("ck_searches_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_searches")),
        sa.UniqueConstraint("owner", "idempotency_key", name=op.f("uq_searches_owner_idempotency_key")),
    )
    op.create_index(op.f("ix_searches_created_at_id"), "searches", ["created_at", "id"], unique=False)
    op.create_index(op.f("ix_searches_owner_created_at_id"), "searches", ["owner", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_searches_state_created_at_id"), "searches", ["state", "created_at", "id"], unique=False)
    op.create_table(
        "distillations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("dataset", sa.String(length=200), nullable=False),
        sa.Column("dataset_digest", sa.String(length=128), nullable=False),
        sa.Column("search_id", sa.String(length=36), nullable=True),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'DEAD')", name=op.f("ck_distillations_state")
        ),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_distillations_search_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_distillations")),
        sa.UniqueConstraint("owner", "idempotency_key", name=op.f("uq_distillations_owner_idempotency_key")),
    )
    op.create_index(op.f("ix_distillations_created_at_id"), "distillations", ["created_at", "id"], unique=False)
    op.create_index(op.f("ix_distillations_owner_created_at_id"), "distillations", ["owner", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_distillations_search_id"), "distillations", ["search_id"], unique=False)
    op.create_index(op.f("ix_distillations_state_created_at_id"), "distillations", ["state", "created_at", "id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("search_id", sa.String(length=36), nullable=True),
        sa.Column("distillation_id", sa.String(length=36), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("lease_token", sa.String(length=36), nullable=True),
        sa.Column("lease_expires_at", MOMENT, nullable=True),
        sa.Column("progress", DOCUMENT, nullable=True),
        sa.Column("result", DOCUMENT, nullable=True),
        sa.Column("failure", DOCUMENT, nullable=True),
        sa.Column("collected", sa.Boolean(), nullable=False),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.CheckConstraint("(state = 'RUNNING') = (lease_token IS NOT NULL)", name=op.f("ck_jobs_running_has_lease")),
        sa.CheckConstraint("(state = 'SUCCEEDED') = (result IS NOT NULL)", name=op.f("ck_jobs_succeeded_has_result")),
        sa.CheckConstraint("kind IN ('evaluate', 'confirm', 'distill')", name=op.f("ck_jobs_kind")),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'LOST', 'DEAD')", name=op.f("ck_jobs_state")
        ),
        sa.CheckConstraint("(lease_token IS NULL) = (lease_expires_at IS NULL)", name=op.f("ck_jobs_lease_expires")),
        sa.CheckConstraint("attempt >= 0 AND attempt <= max_attempts", name=op.f("ck_jobs_attempts")),
        sa.ForeignKeyConstraint(["distillation_id"], ["distillations.id"], name=op.f("fk_jobs_distillation_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_jobs_search_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_distillation_id_collected"), "jobs", ["distillation_id", "collected"], unique=False)
    op.create_index(op.f("ix_jobs_search_id_collected"), "jobs", ["search_id", "collected"], unique=False)
    op.create_index(op.f("ix_jobs_state_lease_expires_at"), "jobs", ["state", "lease_expires_at"], unique=False)
    op.create_index(op.f("ix_jobs_state_priority_created_at_id"), "jobs", ["state", "priority", "created_at", "id"], unique=False)
    op.create_table(
        "results",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("search_id", sa.String(length=36), nullable=True),
        sa.Column("distillation_id", sa.String(length=36), nullable=True),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("dataset", sa.String(length=200), nullable=False),
        sa.Column("dataset_digest", sa.String(length=128), nullable=False),
        sa.Column("policy", DOCUMENT, nullable=False),
        sa.Column("ap", sa.Double(), nullable=True),
        sa.Column("metrics", DOCUMENT, nullable=False),
        sa.Column("evidence", DOCUMENT, nullable=False),
        sa.Column("artifacts", DOCUMENT, nullable=False),
        sa.Column("environment", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint(
            "(kind = 'search' AND search_id IS NOT NULL AND distillation_id IS NULL)"
            " OR (kind = 'distill' AND distillation_id IS NOT NULL AND search_id IS NULL)",
            name=op.f("ck_results_one_origin"),
        ),
        sa.CheckConstraint("kind IN ('search', 'distill')", name=op.f("ck_results_kind")),
        sa.ForeignKeyConstraint(["distillation_id"], ["distillations.id"], name=op.f("fk_results_distillation_id")),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_results_search_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_results")),
        sa.UniqueConstraint("distillation_id", name=op.f("uq_results_distillation_id")),
        sa.UniqueConstraint("search_id", name=op.f("uq_results_search_id")),
    )
    op.create_index(op.f("ix_results_created_at_id"), "results", ["created_at", "id"], unique=False)
    op.create_index(op.f("ix_results_kind_created_at_id"), "results", ["kind", "created_at", "id"], unique=False)
    op.create_index(op.f("ix_results_owner_created_at_id"), "results", ["owner", "created_at", "id"], unique=False)
    op.create_table(
        "candidates",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("search_id", sa.String(length=36), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("policy", DOCUMENT, nullable=False),
        sa.Column("policy_key", sa.String(length=64), nullable=False),
        sa.Column("stage", sa.String(length=20), nullable=False),
        sa.Column("island", sa.String(length=20), nullable=True),
        sa.Column("operator", sa.String(length=20), nullable=False),
        sa.Column("parents", DOCUMENT, nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.Column("ap", sa.Double(), nullable=True),
        sa.Column("ap50", sa.Double(), nullable=True),
        sa.Column("ap75", sa.Double(), nullable=True),
        sa.Column("images", sa.Integer(), nullable=True),
        sa.Column("iterations", sa.Integer(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("failure", DOCUMENT, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.CheckConstraint("(state = 'INFEASIBLE') = (failure IS NOT NULL)", name=op.f("ck_candidates_infeasible_has_failure")),
        sa.CheckConstraint("(state = 'MEASURED') = (ap IS NOT NULL)", name=op.f("ck_candidates_measured_has_ap")),
        sa.CheckConstraint("state IN ('PROPOSED', 'MEASURED', 'INFEASIBLE')", name=op.f("ck_candidates_state")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_candidates_job_id")),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_candidates_search_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_candidates")),
        sa.UniqueConstraint("search_id", "index", name=op.f("uq_candidates_search_id_index")),
        sa.UniqueConstraint("search_id", "policy_key", name=op.f("uq_candidates_search_id_policy_key")),
    )
    op.create_index(op.f("ix_candidates_job_id"), "candidates", ["job_id"], unique=False)
    op.create_index(op.f("ix_candidates_search_id_state_ap"), "candidates", ["search_id", "state", "ap"], unique=False)
    op.create_table(
        "confirmations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("search_id", sa.String(length=36), nullable=False),
        sa.Column("entrant", sa.Integer(), nullable=False),
        sa.Column("candidate", sa.Integer(), nullable=True),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("policy", DOCUMENT, nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.Column("ap", sa.Double(), nullable=True),
        sa.Column("ap50", sa.Double(), nullable=True),
        sa.Column("ap75", sa.Double(), nullable=True),
        sa.Column("selection_ap", sa.Double(), nullable=True),
        sa.Column("images", sa.Integer(), nullable=True),
        sa.Column("iterations", sa.Integer(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("failure", DOCUMENT, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.CheckConstraint("(state = 'INFEASIBLE') = (failure IS NOT NULL)", name=op.f("ck_confirmations_infeasible_has_failure")),
        sa.CheckConstraint("(state = 'MEASURED') = (ap IS NOT NULL)", name=op.f("ck_confirmations_measured_has_ap")),
        sa.CheckConstraint("role IN ('searched', 'alone', 'reference')", name=op.f("ck_confirmations_role")),
        sa.CheckConstraint("state IN ('PROPOSED', 'MEASURED', 'INFEASIBLE')", name=op.f("ck_confirmations_state")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_confirmations_job_id")),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_confirmations_search_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_confirmations")),
        sa.UniqueConstraint("search_id", "entrant", "seed", name=op.f("uq_confirmations_search_id_entrant_seed")),
    )
    op.create_index(op.f("ix_confirmations_job_id"), "confirmations", ["job_id"], unique=False)


def downgrade() -> None:
    for table in ("results", "confirmations", "candidates", "jobs", "distillations", "searches", "leases", "events", "datasets"):
        op.drop_table(table)
