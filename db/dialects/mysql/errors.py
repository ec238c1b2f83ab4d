"""What MySQL and MariaDB say when they themselves are in trouble, and no statement is to blame.

Such an error must never be taken for a refusal: a row that was refused is given up, and one that met a full disk is
written later. The codes are those of "Server Error Message Reference" (dev.mysql.com) and "MariaDB Error Codes"
(mariadb.com/kb). Left out on purpose, because smaller transactions help, which is what a refusal leads to: 1153 (a
packet too large), 1197 (a transaction too large for the binary log).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from db.dialects import failure as failures
from db.dialects.failure import Failure

_DISK_FULL = (
    1021,  # disk full
    1034,  # an incorrect key file, which is what temporary tables on a full disk come to
    1114,  # the table is full
    1878,  # a temporary file cannot be written
    3019,  # InnoDB's undo log
)
_STORAGE = (
    1016,  # a file cannot be opened, read, written, closed
    1023,
    1024,
    1026,
    1030,  # an error from the storage engine
    1180,  # an error during COMMIT, ROLLBACK
    1181,
    1194,  # a table that crashed, or could not be repaired
    1195,
    1296,  # an error from another engine; a temporary one
    1297,
    1712,  # an index, a table that is damaged
    1877,
    1812,  # a tablespace that is missing or was discarded
    1814,
    1815,  # an internal error
    1932,  # MariaDB: a table that its engine does not have
)
_NOT_SERVING = (
    1037,  # out of memory, of memory for sorting, of stack
    1038,
    1041,
    1119,
    1047,  # Galera: not part of the cluster
    1105,  # an error without a name, as proxies in front of a server use it
    1135,  # no thread can be made
    1206,  # no room for locks
    1223,  # somebody holds a lock on all tables
    1598,  # the binary log cannot be written, or not in its present format
    1665,
    1637,  # too many transactions at once
    1964,  # MariaDB: an earlier commit of the group failed
    3032,  # offline mode
    3100,  # group replication: a hook failed
    3168,  # the server is not available
    3170,  # the memory for something is used up
)
_READ_ONLY = (
    1036,  # a table
    1290,  # --read-only
    1792,  # a write in a transaction that was begun to read
    1836,  # the server, InnoDB
    1874,
    1881,  # innodb_force_recovery
)
_DISCONNECTED = (
    1053,  # shutdown in progress
    1077,
    1079,
    1152,  # the server gave the connection up
    1184,
    1154,  # packets that could not be read or written, came late, or out of order
    1155,
    1156,
    1157,
    1158,
    1159,
    1160,
    1161,
    1189,
    1190,
    1835,
    1317,  # interrupted by an administrator, who may have ended the session too
    1927,  # MariaDB: killed
    2014,
    2055,
    3169,  # killed
    4031,  # silent for longer than the server allows
)
_LOGIN = (
    1045,
    1698,
    1820,  # the password has expired
    1862,
    3118,  # the account is locked; MariaDB's own code
    4151,
)
_STRANGER = (
    1129,  # the host is blocked after many errors, is not one that may connect
    1130,
)
#: Group replication rolled the transaction back.
_CONTENTION = (3101,)


def _by_code() -> Iterator[tuple[int, Failure]]:
    for codes, failure in (
        (_DISK_FULL, failures.DISK_FULL),
        (_STORAGE, failures.STORAGE),
        (_NOT_SERVING, failures.NOT_SERVING),
        (_READ_ONLY, failures.READ_ONLY),
        (_DISCONNECTED, failures.DISCONNECTED),
        (_LOGIN, failures.LOGIN),
        (_STRANGER, failures.STRANGER),
        (_CONTENTION, failures.CONTENTION),
    ):
        for code in codes:
            yield code, failure


#: What each of these codes means.
TROUBLES: Mapping[int, Failure] = dict(_by_code())
