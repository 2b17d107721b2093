"""What is asked of an engine: the order of requests in a batch."""

import numpy as np

from medvista_ray.types.sampling import GenerateRequest, SamplingSpec


def _request(group_id: str, member: int) -> GenerateRequest:
    return GenerateRequest(
        group_id=group_id,
        member=member,
        turn_index=0,
        token_ids=np.zeros(1, np.int32),
        image_spans=(),
        max_new_tokens=1,
        sampling=SamplingSpec(),
    )


def test_requests_sort_by_numbers_and_beside_other_ids() -> None:
    requests = [_request(*key) for key in (("0/10/0", 1), ("0/9/0", 0), ("probe-0", 0), ("0/10/0", 0))]
    ordered = [(request.group_id, request.member) for request in sorted(requests, key=lambda each: each.sort_key)]
    assert ordered == [("probe-0", 0), ("0/9/0", 0), ("0/10/0", 0), ("0/10/0", 1)]
