from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_CONTROL: _ClassVar[Role]
    ROLE_DATA: _ClassVar[Role]

class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODE_UNSPECIFIED: _ClassVar[Code]
    CODE_VERSION: _ClassVar[Code]
    CODE_TOKEN: _ClassVar[Code]
    CODE_POLICY: _ClassVar[Code]
    CODE_PATH: _ClassVar[Code]
    CODE_EXISTS: _ClassVar[Code]
    CODE_PROTOCOL: _ClassVar[Code]
    CODE_CORRUPT: _ClassVar[Code]
    CODE_BUSY: _ClassVar[Code]
    CODE_UNKNOWN_TRANSFER: _ClassVar[Code]
    CODE_LIMIT: _ClassVar[Code]
    CODE_SHUTTING_DOWN: _ClassVar[Code]
    CODE_SUPERSEDED: _ClassVar[Code]
    CODE_TIMEOUT: _ClassVar[Code]
    CODE_SOURCE: _ClassVar[Code]
    CODE_SOURCE_CHANGED: _ClassVar[Code]
    CODE_DESTINATION: _ClassVar[Code]
    CODE_NO_SPACE: _ClassVar[Code]
    CODE_DIGEST: _ClassVar[Code]
    CODE_INTERNAL: _ClassVar[Code]
    CODE_TOO_LARGE: _ClassVar[Code]
    CODE_JOB: _ClassVar[Code]

class Existing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXISTING_UNSPECIFIED: _ClassVar[Existing]
    EXISTING_REPLACE: _ClassVar[Existing]
    EXISTING_SKIP: _ClassVar[Existing]
    EXISTING_NEWER: _ClassVar[Existing]
    EXISTING_REFUSE: _ClassVar[Existing]

class EntryType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENTRY_TYPE_UNSPECIFIED: _ClassVar[EntryType]
    ENTRY_TYPE_FILE: _ClassVar[EntryType]
    ENTRY_TYPE_DIRECTORY: _ClassVar[EntryType]
    ENTRY_TYPE_SYMLINK: _ClassVar[EntryType]
    ENTRY_TYPE_STREAM: _ClassVar[EntryType]
    ENTRY_TYPE_KEPT: _ClassVar[EntryType]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_OFFERING: _ClassVar[Phase]
    PHASE_MOVING: _ClassVar[Phase]
    PHASE_SYNCING: _ClassVar[Phase]
    PHASE_WAITING: _ClassVar[Phase]

class SkipKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SKIP_KIND_UNSPECIFIED: _ClassVar[SkipKind]
    SKIP_KIND_VANISHED: _ClassVar[SkipKind]
    SKIP_KIND_CHANGED: _ClassVar[SkipKind]
    SKIP_KIND_UNREADABLE: _ClassVar[SkipKind]
    SKIP_KIND_DECLINED: _ClassVar[SkipKind]
    SKIP_KIND_ATTRIBUTE: _ClassVar[SkipKind]
    SKIP_KIND_SPECIAL: _ClassVar[SkipKind]
    SKIP_KIND_EXISTING: _ClassVar[SkipKind]

class Standing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STANDING_UNSPECIFIED: _ClassVar[Standing]
    STANDING_NEW: _ClassVar[Standing]
    STANDING_DIFFERS: _ClassVar[Standing]
    STANDING_SAME: _ClassVar[Standing]
    STANDING_LEFT: _ClassVar[Standing]
    STANDING_EXISTING: _ClassVar[Standing]
    STANDING_DECLINED: _ClassVar[Standing]
    STANDING_EXTRA: _ClassVar[Standing]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_OK: _ClassVar[Verdict]
    VERDICT_DIGEST_MISMATCH: _ClassVar[Verdict]
ROLE_UNSPECIFIED: Role
ROLE_CONTROL: Role
ROLE_DATA: Role
CODE_UNSPECIFIED: Code
CODE_VERSION: Code
CODE_TOKEN: Code
CODE_POLICY: Code
CODE_PATH: Code
CODE_EXISTS: Code
CODE_PROTOCOL: Code
CODE_CORRUPT: Code
CODE_BUSY: Code
CODE_UNKNOWN_TRANSFER: Code
CODE_LIMIT: Code
CODE_SHUTTING_DOWN: Code
CODE_SUPERSEDED: Code
CODE_TIMEOUT: Code
CODE_SOURCE: Code
CODE_SOURCE_CHANGED: Code
CODE_DESTINATION: Code
CODE_NO_SPACE: Code
CODE_DIGEST: Code
CODE_INTERNAL: Code
CODE_TOO_LARGE: Code
CODE_JOB: Code
EXISTING_UNSPECIFIED: Existing
EXISTING_REPLACE: Existing
EXISTING_SKIP: Existing
EXISTING_NEWER: Existing
EXISTING_REFUSE: Existing
ENTRY_TYPE_UNSPECIFIED: EntryType
ENTRY_TYPE_FILE: EntryType
ENTRY_TYPE_DIRECTORY: EntryType
ENTRY_TYPE_SYMLINK: EntryType
ENTRY_TYPE_STREAM: EntryType
ENTRY_TYPE_KEPT: EntryType
PHASE_UNSPECIFIED: Phase
PHASE_OFFERING: Phase
PHASE_MOVING: Phase
PHASE_SYNCING: Phase
PHASE_WAITING: Phase
SKIP_KIND_UNSPECIFIED: SkipKind
SKIP_KIND_VANISHED: SkipKind
SKIP_KIND_CHANGED: SkipKind
SKIP_KIND_UNREADABLE: SkipKind
SKIP_KIND_DECLINED: SkipKind
SKIP_KIND_ATTRIBUTE: SkipKind
SKIP_KIND_SPECIAL: SkipKind
SKIP_KIND_EXISTING: SkipKind
STANDING_UNSPECIFIED: Standing
STANDING_NEW: Standing
STANDING_DIFFERS: Standing
STANDING_SAME: Standing
STANDING_LEFT: Standing
STANDING_EXISTING: Standing
STANDING_DECLINED: Standing
STANDING_EXTRA: Standing
VERDICT_UNSPECIFIED: Verdict
VERDICT_OK: Verdict
VERDICT_DIGEST_MISMATCH: Verdict

class Frame(_message.Message):
    __slots__ = ("greeting", "hello", "proof", "welcome", "refusal", "offer", "manifest_part", "needed", "held", "progress", "finish", "complete", "withdrawn", "declined", "notice", "zeros", "verdicts", "connections", "chunk_header", "chunk_ack", "abort")
    GREETING_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_PART_FIELD_NUMBER: _ClassVar[int]
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    DECLINED_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    ZEROS_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ACK_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    greeting: Greeting
    hello: Hello
    proof: Proof
    welcome: Welcome
    refusal: Refusal
    offer: Offer
    manifest_part: ManifestPart
    needed: Needed
    held: Held
    progress: Progress
    finish: Finish
    complete: Complete
    withdrawn: Withdrawn
    declined: Declined
    notice: Notice
    zeros: Zeros
    verdicts: Verdicts
    connections: Connections
    chunk_header: ChunkHeader
    chunk_ack: ChunkAck
    abort: Abort
    def __init__(self, greeting: _Optional[_Union[Greeting, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., manifest_part: _Optional[_Union[ManifestPart, _Mapping]] = ..., needed: _Optional[_Union[Needed, _Mapping]] = ..., held: _Optional[_Union[Held, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., complete: _Optional[_Union[Complete, _Mapping]] = ..., withdrawn: _Optional[_Union[Withdrawn, _Mapping]] = ..., declined: _Optional[_Union[Declined, _Mapping]] = ..., notice: _Optional[_Union[Notice, _Mapping]] = ..., zeros: _Optional[_Union[Zeros, _Mapping]] = ..., verdicts: _Optional[_Union[Verdicts, _Mapping]] = ..., connections: _Optional[_Union[Connections, _Mapping]] = ..., chunk_header: _Optional[_Union[ChunkHeader, _Mapping]] = ..., chunk_ack: _Optional[_Union[ChunkAck, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ...) -> None: ...

class Greeting(_message.Message):
    __slots__ = ("lowest_version", "highest_version", "incarnation", "nonce", "token_required", "features", "role")
    LOWEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    lowest_version: int
    highest_version: int
    incarnation: bytes
    nonce: bytes
    token_required: bool
    features: _containers.RepeatedScalarFieldContainer[str]
    role: Role
    def __init__(self, lowest_version: _Optional[int] = ..., highest_version: _Optional[int] = ..., incarnation: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., token_required: _Optional[bool] = ..., features: _Optional[_Iterable[str]] = ..., role: _Optional[_Union[Role, str]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("lowest_version", "highest_version", "transfer_id", "role", "connection_id", "connections", "nonce", "can_prove", "features", "needs", "job")
    LOWEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_ID_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    CAN_PROVE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    lowest_version: int
    highest_version: int
    transfer_id: bytes
    role: Role
    connection_id: int
    connections: int
    nonce: bytes
    can_prove: bool
    features: _containers.RepeatedScalarFieldContainer[str]
    needs: _containers.RepeatedScalarFieldContainer[str]
    job: str
    def __init__(self, lowest_version: _Optional[int] = ..., highest_version: _Optional[int] = ..., transfer_id: _Optional[bytes] = ..., role: _Optional[_Union[Role, str]] = ..., connection_id: _Optional[int] = ..., connections: _Optional[int] = ..., nonce: _Optional[bytes] = ..., can_prove: _Optional[bool] = ..., features: _Optional[_Iterable[str]] = ..., needs: _Optional[_Iterable[str]] = ..., job: _Optional[str] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("mac",)
    MAC_FIELD_NUMBER: _ClassVar[int]
    mac: bytes
    def __init__(self, mac: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("mac", "job")
    MAC_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    mac: bytes
    job: str
    def __init__(self, mac: _Optional[bytes] = ..., job: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: Code
    reason: str
    def __init__(self, code: _Optional[_Union[Code, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("code", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: Code
    reason: str
    def __init__(self, code: _Optional[_Union[Code, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("shard_index", "shard_count", "tree")
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    SHARD_COUNT_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    shard_index: int
    shard_count: int
    tree: bool
    def __init__(self, shard_index: _Optional[int] = ..., shard_count: _Optional[int] = ..., tree: _Optional[bool] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("chunk_size", "shard", "checksum", "total_bytes", "existing", "delete", "dry_run", "xattrs", "again")
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXISTING_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    XATTRS_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    chunk_size: int
    shard: Shard
    checksum: bool
    total_bytes: int
    existing: Existing
    delete: Deletion
    dry_run: bool
    xattrs: bool
    again: bool
    def __init__(self, chunk_size: _Optional[int] = ..., shard: _Optional[_Union[Shard, _Mapping]] = ..., checksum: _Optional[bool] = ..., total_bytes: _Optional[int] = ..., existing: _Optional[_Union[Existing, str]] = ..., delete: _Optional[_Union[Deletion, _Mapping]] = ..., dry_run: _Optional[bool] = ..., xattrs: _Optional[bool] = ..., again: _Optional[bool] = ...) -> None: ...

class Deletion(_message.Message):
    __slots__ = ("roots", "excludes")
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDES_FIELD_NUMBER: _ClassVar[int]
    roots: _containers.RepeatedScalarFieldContainer[bytes]
    excludes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, roots: _Optional[_Iterable[bytes]] = ..., excludes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Xattr(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    value: bytes
    def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class EntryDetails(_message.Message):
    __slots__ = ("index", "link_target", "hard_link_group", "xattrs", "data_bytes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LINK_TARGET_FIELD_NUMBER: _ClassVar[int]
    HARD_LINK_GROUP_FIELD_NUMBER: _ClassVar[int]
    XATTRS_FIELD_NUMBER: _ClassVar[int]
    DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    index: int
    link_target: bytes
    hard_link_group: int
    xattrs: _containers.RepeatedCompositeFieldContainer[Xattr]
    data_bytes: int
    def __init__(self, index: _Optional[int] = ..., link_target: _Optional[bytes] = ..., hard_link_group: _Optional[int] = ..., xattrs: _Optional[_Iterable[_Union[Xattr, _Mapping]]] = ..., data_bytes: _Optional[int] = ...) -> None: ...

class ManifestPart(_message.Message):
    __slots__ = ("first_file_id", "paths", "types", "sizes", "modes", "mtimes_ns", "uids", "gids", "details", "last", "more_xattrs", "xattrs_continue")
    FIRST_FILE_ID_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    MTIMES_NS_FIELD_NUMBER: _ClassVar[int]
    UIDS_FIELD_NUMBER: _ClassVar[int]
    GIDS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    MORE_XATTRS_FIELD_NUMBER: _ClassVar[int]
    XATTRS_CONTINUE_FIELD_NUMBER: _ClassVar[int]
    first_file_id: int
    paths: _containers.RepeatedScalarFieldContainer[bytes]
    types: _containers.RepeatedScalarFieldContainer[EntryType]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    modes: _containers.RepeatedScalarFieldContainer[int]
    mtimes_ns: _containers.RepeatedScalarFieldContainer[int]
    uids: _containers.RepeatedScalarFieldContainer[int]
    gids: _containers.RepeatedScalarFieldContainer[int]
    details: _containers.RepeatedCompositeFieldContainer[EntryDetails]
    last: bool
    more_xattrs: _containers.RepeatedCompositeFieldContainer[Xattr]
    xattrs_continue: bool
    def __init__(self, first_file_id: _Optional[int] = ..., paths: _Optional[_Iterable[bytes]] = ..., types: _Optional[_Iterable[_Union[EntryType, str]]] = ..., sizes: _Optional[_Iterable[int]] = ..., modes: _Optional[_Iterable[int]] = ..., mtimes_ns: _Optional[_Iterable[int]] = ..., uids: _Optional[_Iterable[int]] = ..., gids: _Optional[_Iterable[int]] = ..., details: _Optional[_Iterable[_Union[EntryDetails, _Mapping]]] = ..., last: _Optional[bool] = ..., more_xattrs: _Optional[_Iterable[_Union[Xattr, _Mapping]]] = ..., xattrs_continue: _Optional[bool] = ...) -> None: ...

class FileRange(_message.Message):
    __slots__ = ("first_file_id", "files")
    FIRST_FILE_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    first_file_id: int
    files: int
    def __init__(self, first_file_id: _Optional[int] = ..., files: _Optional[int] = ...) -> None: ...

class SegmentRange(_message.Message):
    __slots__ = ("file_id", "first_segment", "segments")
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    file_id: int
    first_segment: int
    segments: int
    def __init__(self, file_id: _Optional[int] = ..., first_segment: _Optional[int] = ..., segments: _Optional[int] = ...) -> None: ...

class Needed(_message.Message):
    __slots__ = ("files", "segments", "window_bytes")
    FILES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[FileRange]
    segments: _containers.RepeatedCompositeFieldContainer[SegmentRange]
    window_bytes: int
    def __init__(self, files: _Optional[_Iterable[_Union[FileRange, _Mapping]]] = ..., segments: _Optional[_Iterable[_Union[SegmentRange, _Mapping]]] = ..., window_bytes: _Optional[int] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("file_id", "first_segment", "digests", "unchecked", "final", "left", "files")
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    file_id: int
    first_segment: int
    digests: bytes
    unchecked: _containers.RepeatedCompositeFieldContainer[FileRange]
    final: bool
    left: _containers.RepeatedCompositeFieldContainer[FileRange]
    files: _containers.RepeatedCompositeFieldContainer[FileRange]
    def __init__(self, file_id: _Optional[int] = ..., first_segment: _Optional[int] = ..., digests: _Optional[bytes] = ..., unchecked: _Optional[_Iterable[_Union[FileRange, _Mapping]]] = ..., final: _Optional[bool] = ..., left: _Optional[_Iterable[_Union[FileRange, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[FileRange, _Mapping]]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "acknowledged_bytes", "rehashed_bytes", "stage_microseconds", "deleted", "under_way_bytes", "starved", "passed_over")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REHASHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGE_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    UNDER_WAY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STARVED_FIELD_NUMBER: _ClassVar[int]
    PASSED_OVER_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    acknowledged_bytes: int
    rehashed_bytes: int
    stage_microseconds: _containers.RepeatedScalarFieldContainer[int]
    deleted: int
    under_way_bytes: int
    starved: _containers.RepeatedScalarFieldContainer[int]
    passed_over: int
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., acknowledged_bytes: _Optional[int] = ..., rehashed_bytes: _Optional[int] = ..., stage_microseconds: _Optional[_Iterable[int]] = ..., deleted: _Optional[int] = ..., under_way_bytes: _Optional[int] = ..., starved: _Optional[_Iterable[int]] = ..., passed_over: _Optional[int] = ...) -> None: ...

class LeftOutCount(_message.Message):
    __slots__ = ("kind", "entries")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    kind: SkipKind
    entries: int
    def __init__(self, kind: _Optional[_Union[SkipKind, str]] = ..., entries: _Optional[int] = ...) -> None: ...

class LeftOut(_message.Message):
    __slots__ = ("path", "kind", "reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    kind: SkipKind
    reason: str
    def __init__(self, path: _Optional[bytes] = ..., kind: _Optional[_Union[SkipKind, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("chunks", "root_digest", "stream_bytes", "left_out_counts", "left_out", "ahead", "walk_digest")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    ROOT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STREAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_COUNTS_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    WALK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    chunks: int
    root_digest: bytes
    stream_bytes: int
    left_out_counts: _containers.RepeatedCompositeFieldContainer[LeftOutCount]
    left_out: _containers.RepeatedCompositeFieldContainer[LeftOut]
    ahead: bool
    walk_digest: bytes
    def __init__(self, chunks: _Optional[int] = ..., root_digest: _Optional[bytes] = ..., stream_bytes: _Optional[int] = ..., left_out_counts: _Optional[_Iterable[_Union[LeftOutCount, _Mapping]]] = ..., left_out: _Optional[_Iterable[_Union[LeftOut, _Mapping]]] = ..., ahead: _Optional[bool] = ..., walk_digest: _Optional[bytes] = ...) -> None: ...

class Withdrawn(_message.Message):
    __slots__ = ("file_ids",)
    FILE_IDS_FIELD_NUMBER: _ClassVar[int]
    file_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, file_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DeclinedEntry(_message.Message):
    __slots__ = ("file_id", "kind", "reason", "path")
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    file_id: int
    kind: SkipKind
    reason: str
    path: bytes
    def __init__(self, file_id: _Optional[int] = ..., kind: _Optional[_Union[SkipKind, str]] = ..., reason: _Optional[str] = ..., path: _Optional[bytes] = ...) -> None: ...

class Declined(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[DeclinedEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[DeclinedEntry, _Mapping]]] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class Zeros(_message.Message):
    __slots__ = ("segments",)
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[SegmentRange]
    def __init__(self, segments: _Optional[_Iterable[_Union[SegmentRange, _Mapping]]] = ...) -> None: ...

class Complete(_message.Message):
    __slots__ = ("committed", "deleted", "undeletable", "left", "shards_finished", "job_files", "job_bytes")
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    UNDELETABLE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FINISHED_FIELD_NUMBER: _ClassVar[int]
    JOB_FILES_FIELD_NUMBER: _ClassVar[int]
    JOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    committed: bool
    deleted: int
    undeletable: int
    left: int
    shards_finished: int
    job_files: int
    job_bytes: int
    def __init__(self, committed: _Optional[bool] = ..., deleted: _Optional[int] = ..., undeletable: _Optional[int] = ..., left: _Optional[int] = ..., shards_finished: _Optional[int] = ..., job_files: _Optional[int] = ..., job_bytes: _Optional[int] = ...) -> None: ...

class EntryVerdict(_message.Message):
    __slots__ = ("standing", "file_id", "files", "path", "reason")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    file_id: int
    files: int
    path: bytes
    reason: str
    def __init__(self, standing: _Optional[_Union[Standing, str]] = ..., file_id: _Optional[int] = ..., files: _Optional[int] = ..., path: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...

class Verdicts(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[EntryVerdict]
    def __init__(self, entries: _Optional[_Iterable[_Union[EntryVerdict, _Mapping]]] = ...) -> None: ...

class Connections(_message.Message):
    __slots__ = ("wanted",)
    WANTED_FIELD_NUMBER: _ClassVar[int]
    wanted: int
    def __init__(self, wanted: _Optional[int] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("file_id", "offset", "length", "runs")
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    file_id: int
    offset: int
    length: int
    runs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, file_id: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., runs: _Optional[_Iterable[int]] = ...) -> None: ...

class ChunkHeader(_message.Message):
    __slots__ = ("chunk_id", "segments", "chunks", "stride")
    CHUNK_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    chunk_id: int
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    chunks: int
    stride: int
    def __init__(self, chunk_id: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., chunks: _Optional[int] = ..., stride: _Optional[int] = ...) -> None: ...

class ChunkRange(_message.Message):
    __slots__ = ("first_chunk_id", "chunks", "stride")
    FIRST_CHUNK_ID_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    first_chunk_id: int
    chunks: int
    stride: int
    def __init__(self, first_chunk_id: _Optional[int] = ..., chunks: _Optional[int] = ..., stride: _Optional[int] = ...) -> None: ...

class ChunkAck(_message.Message):
    __slots__ = ("verdict", "chunk_ids", "ranges")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_IDS_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    chunk_ids: _containers.RepeatedScalarFieldContainer[int]
    ranges: _containers.RepeatedCompositeFieldContainer[ChunkRange]
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., chunk_ids: _Optional[_Iterable[int]] = ..., ranges: _Optional[_Iterable[_Union[ChunkRange, _Mapping]]] = ...) -> None: ...
