"""`detkds keys`, and pause and resume, as people run them."""

import json


def test_a_key_is_made_listed_and_revoked(detkds):
    made = detkds("keys", "create", "laptop", "--owner", "vision", "--days", "30")
    assert made.returncode == 0, made.stderr
    secret = next(line for line in made.stdout.splitlines() if "secret" in line).split()[-1]
    assert secret.startswith("detkds_")
    listed = detkds("keys")
    assert "vision" in listed.stdout
    assert secret not in listed.stdout
    (key,) = (one for one in json.loads(detkds("keys", "--json").stdout) if one["name"] == "laptop")
    assert (key["scope"], key["owner"]) == ("run", "vision")
    ended = detkds("keys", "revoke", key["id"])
    assert ended.returncode == 0
    assert "revoked 20" in ended.stdout


def test_a_wrong_scope_is_refused_with_what_would_be_right(detkds):
    wrong = detkds("keys", "create", "laptop", "--owner", "vision", "--scope", "root")
    assert wrong.returncode == 1
    assert "scope: 'root' should be 'read', 'run' or 'admin'" in " ".join(wrong.stderr.split())


def test_a_search_is_paused_and_resumed(detkds, pairing):
    one = json.loads(detkds("search", *pairing, "--candidates", "12", "--no-wait", "--json").stdout)["id"]
    assert "PAUSED" in detkds("pause", one).stdout
    assert json.loads(detkds("resume", one, "--json").stdout)["state"] == "QUEUED"
    detkds("cancel", one)
    refused = detkds("pause", one)
    assert refused.returncode == 1
    assert "there is nothing to pause" in refused.stderr
