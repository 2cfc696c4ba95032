"""`GET /results/compare`: results side by side, and never those of different images."""

from detkds_core.store import results


def compare(service, *ids):
    answer = service.http.get("/results/compare", params={"ids": ",".join(ids)})
    assert answer.status_code == 200, answer.text
    return answer.json()["groups"]


def test_results_of_the_same_images_stand_side_by_side(service, of_search, of_distillation):
    first, second = of_distillation(), of_search()
    (group,) = compare(service, first, second)
    assert (group["dataset"], group["dataset_digest"], group["images"], group["why"]) == ("shapes", "d" * 20, 300, None)
    alone, found = group["results"]
    assert found.pop("created_at").startswith("20")
    assert found == {
        "id": second,
        "kind": "search",
        "name": "found",
        "teacher": "big",
        "student": "small",
        "formula": "5·l2(standardize(global))",
        "ap": 30.25,
        "interval": [28.5, 32.0],
        "seeds": [1, 2, 3],
        "images": 300,
        "dataset": "shapes",
        "dataset_digest": "d" * 20,
        "versions": {"detkds_core": "0.1.0", "detkds_evolver": "0.2.0", "torch": "2.14.1", "device": "cpu"},
        "cost": {"seconds": 90.5, "iterations": 4000, "trunk_seconds": 5.5, "trunk_iterations": 120},
    }
    untold = {"trunk_seconds": None, "trunk_iterations": None}
    assert (alone["id"], alone["ap"], alone["interval"], alone["seeds"]) == (first, 21.0, None, [4])
    assert (alone["versions"], alone["cost"]) == ({"torch": "2.13.0"}, {"seconds": None, "iterations": 300} | untold)


def test_results_of_other_images_come_in_groups_of_their_own_with_the_reason(service, of_search, of_distillation):
    ids = [
        of_search(),
        of_distillation(images=150),
        of_search(digest="e" * 20, name="trees"),
        of_distillation(),
        of_distillation(images=150),
    ]
    groups = compare(service, *ids)
    assert [[one["id"] for one in group["results"]] for group in groups] == [[ids[0], ids[3]], [ids[1], ids[4]], [ids[2]]]
    assert [group["why"] for group in groups] == [
        None,
        "measured on 150 images of shapes, the first group on 300 of the same dataset: APs on other images are not compared",
        "measured on trees (digest eeeeeeeeeeee), the first group on shapes (digest dddddddddddd): APs on other images are not compared",
    ]


def test_what_does_not_say_on_which_images_it_was_measured_is_like_nothing_else(service, of_search, of_distillation):
    known, nameless, other, countless = of_search(), of_search(digest=""), of_search(digest=""), of_distillation(images=None)
    groups = compare(service, known, nameless, other, countless)
    assert [len(group["results"]) for group in groups] == [1, 1, 1, 1]
    assert groups[1]["why"] == "this has no dataset digest, so nothing says that both were measured on the same images"
    assert groups[3]["why"] == "this has no image count, so nothing says that both were measured on the same images"
    assert compare(service, nameless, known)[1]["why"].startswith("the first has no dataset digest, so nothing says")


def test_ids_that_cannot_be_compared_are_told(service, of_search):
    one = of_search()
    for ids, message in (
        (one, "1 given; 2 to 20 results can be compared, with commas between their ids"),
        (",", "0 given; 2 to 20 results"),
        (",".join([one] * 21), "21 given; 2 to 20 results"),
        (f"{one}, {one}", f"{one} appears twice; name each result once"),
    ):
        answer = service.http.get("/results/compare", params={"ids": ids})
        assert answer.status_code == 422
        assert message in answer.json()["errors"][0]["message"]
        assert answer.json()["errors"][0]["pointer"] == "?ids"
    assert service.http.get("/results/compare").json()["errors"] == [{"pointer": "?ids", "message": "is required"}]
    gone = "0198a3c2-7d1e-7c43-9a51-2f60c1c3d9aa"
    answer = service.http.get("/results/compare", params={"ids": f"{one},{gone},no-id"})
    assert (answer.status_code, answer.json()["detail"]) == (404, f"there is no result {gone}, no-id; GET /results lists them")


def test_somebody_elses_result_is_not_there(service, of_search):
    one, other = of_search(), of_search()
    with service.store.read() as session:
        assert results.some(session, [one, other], owner="somebody") == {}
