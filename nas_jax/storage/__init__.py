"""Disks and buckets (gs://BUCKET/...) behind one door.

    paths        what a path is, the connection to buckets, and what goes wrong there
    files        whole files and folders: list, read, write, rename
    growing      files that are appended to
    reading      pieces of files, many at a time: what data sources need
    local_copy   copies of folders in buckets, for what can only be read from a disk

A bucket is not a disk. A file is there whole or not at all. Nothing can be appended to it, and
renaming is copying. A folder is the beginning of some names: it need not be made, and cannot be
empty.

Two ways to fail. `files` and `growing` raise what the disk or the bucket raises (`paths.failures`),
as the work directory has its own words for it. `reading` and `local_copy` raise DataError where a
bucket refuses or does not answer, so that a run ends instead of taking other pictures for those it
cannot reach. The words about a bucket are the same in both (`paths.refusal`).
"""
