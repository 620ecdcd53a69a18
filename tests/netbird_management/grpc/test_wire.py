"""Messages that are joined of bytes are the messages that they stand for."""

from hypothesis import given
from hypothesis import strategies as st

from netbird_management.grpc.wire import mapping_entry, message
from netbird_wire.proxy_service_pb2 import (
    UPDATE_TYPE_CREATED,
    UPDATE_TYPE_MODIFIED,
    UPDATE_TYPE_REMOVED,
    GetMappingUpdateResponse,
    PathMapping,
    ProxyMapping,
    SyncMappingsResponse,
)

mappings = st.builds(
    lambda id_, targets, private: ProxyMapping(
        id=id_, path=[PathMapping(path="/", target=target) for target in targets], private=private
    ),
    st.text(max_size=300),
    st.lists(st.text(max_size=20_000), max_size=3),
    st.booleans(),
)
kinds = st.sampled_from([UPDATE_TYPE_CREATED, UPDATE_TYPE_MODIFIED, UPDATE_TYPE_REMOVED])


@given(st.lists(st.tuples(mappings, kinds, st.text(max_size=200)), max_size=3), st.booleans())
def test_entries_and_the_rest_are_one_message(sent: list[tuple[ProxyMapping, int, str]], complete: bool) -> None:
    """For both streams; each entry is its mapping with type and token."""
    joined = message(
        [mapping_entry(one.SerializeToString(), kind, token) for one, kind, token in sent],  # type: ignore[arg-type]
        initial_sync_complete=complete,
        management_extensions=["x"],
    )
    for one, kind, token in sent:
        one.type, one.auth_token = kind, token  # type: ignore[assignment]
    for stream in (SyncMappingsResponse, GetMappingUpdateResponse):
        assert stream.FromString(joined) == stream(
            mapping=[one for one, _, _ in sent], initial_sync_complete=complete, management_extensions=["x"]
        )
