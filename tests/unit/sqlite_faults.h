/* SPDX-License-Identifier: Apache-2.0 */
/* A file layer of SQLite in front of its own, that counts syncs of the log and lets writes and
 * syncs of it fail: what a full or failing disk does in the middle of a COMMIT. For one test
 * program. */
#ifndef TESTS_UNIT_SQLITE_FAULTS_H
#define TESTS_UNIT_SQLITE_FAULTS_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static struct sqlite_faults {
    unsigned log_syncs;
    int log_sync_fails;   /* the next so many, -1 = all */
    int log_write_fails;  /* SQLITE_FULL */
    int file_write_fails; /* SQLITE_FULL, of the database file itself */
} sqlite_faults;

struct faulty_file {
    sqlite3_file base;
    bool is_log;
    sqlite3_file *real; /* behind this struct, in the room that szOsFile asks for */
};

static sqlite3_vfs *faulty_real_vfs;
static sqlite3_vfs faulty_vfs;

static sqlite3_file *faulty_real(sqlite3_file *file)
{
    return ((struct faulty_file *)file)->real;
}

static bool faulty_due(int *count)
{
    if (*count == 0)
        return false;
    if (*count > 0)
        --*count;
    return true;
}

static int faulty_write(sqlite3_file *file, const void *data, int size, sqlite3_int64 at)
{
    bool is_log = ((struct faulty_file *)file)->is_log;
    if (faulty_due(is_log ? &sqlite_faults.log_write_fails : &sqlite_faults.file_write_fails))
        return SQLITE_FULL;
    return faulty_real(file)->pMethods->xWrite(faulty_real(file), data, size, at);
}

static int faulty_sync(sqlite3_file *file, int flags)
{
    if (((struct faulty_file *)file)->is_log) {
        sqlite_faults.log_syncs++;
        if (faulty_due(&sqlite_faults.log_sync_fails))
            return SQLITE_IOERR_FSYNC;
    }
    return faulty_real(file)->pMethods->xSync(faulty_real(file), flags);
}

#define FAULTY_PASS(name, params, args)                                                            \
    static int faulty_##name params                                                                \
    {                                                                                              \
        return faulty_real(f)->pMethods->name args;                                                \
    }
#define R faulty_real(f)
FAULTY_PASS(xRead, (sqlite3_file * f, void *p, int n, sqlite3_int64 o), (R, p, n, o))
FAULTY_PASS(xTruncate, (sqlite3_file * f, sqlite3_int64 n), (R, n))
FAULTY_PASS(xFileSize, (sqlite3_file * f, sqlite3_int64 *n), (R, n))
FAULTY_PASS(xLock, (sqlite3_file * f, int l), (R, l))
FAULTY_PASS(xUnlock, (sqlite3_file * f, int l), (R, l))
FAULTY_PASS(xCheckReservedLock, (sqlite3_file * f, int *l), (R, l))
FAULTY_PASS(xFileControl, (sqlite3_file * f, int c, void *p), (R, c, p))
FAULTY_PASS(xSectorSize, (sqlite3_file * f), (R))
FAULTY_PASS(xDeviceCharacteristics, (sqlite3_file * f), (R))
FAULTY_PASS(xShmMap, (sqlite3_file * f, int a, int b, int c, void volatile **p), (R, a, b, c, p))
FAULTY_PASS(xShmLock, (sqlite3_file * f, int a, int b, int c), (R, a, b, c))
FAULTY_PASS(xShmUnmap, (sqlite3_file * f, int a), (R, a))

static void faulty_xShmBarrier(sqlite3_file *f)
{
    R->pMethods->xShmBarrier(R);
}

static int faulty_close(sqlite3_file *f)
{
    return R->pMethods->xClose(R);
}
#undef R

static const sqlite3_io_methods faulty_methods = {
    .iVersion = 2,
    .xClose = faulty_close,
    .xRead = faulty_xRead,
    .xWrite = faulty_write,
    .xTruncate = faulty_xTruncate,
    .xSync = faulty_sync,
    .xFileSize = faulty_xFileSize,
    .xLock = faulty_xLock,
    .xUnlock = faulty_xUnlock,
    .xCheckReservedLock = faulty_xCheckReservedLock,
    .xFileControl = faulty_xFileControl,
    .xSectorSize = faulty_xSectorSize,
    .xDeviceCharacteristics = faulty_xDeviceCharacteristics,
    .xShmMap = faulty_xShmMap,
    .xShmLock = faulty_xShmLock,
    .xShmBarrier = faulty_xShmBarrier,
    .xShmUnmap = faulty_xShmUnmap,
};

static int faulty_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out)
{
    struct faulty_file *faulty = (struct faulty_file *)file;
    (void)vfs;
    *faulty = (struct faulty_file){.is_log = (flags & SQLITE_OPEN_WAL) != 0,
                                   .real = (sqlite3_file *)(faulty + 1)};
    faulty->real->pMethods = NULL;
    int rc = faulty_real_vfs->xOpen(faulty_real_vfs, name, faulty->real, flags, out);
    faulty->base.pMethods = faulty->real->pMethods != NULL ? &faulty_methods : NULL;
    return rc;
}

/* Before the first connection. */
static void sqlite_faults_install(void)
{
    faulty_real_vfs = sqlite3_vfs_find(NULL);
    faulty_vfs = *faulty_real_vfs;
    faulty_vfs.zName = "faulty";
    faulty_vfs.szOsFile = (int)sizeof(struct faulty_file) + faulty_real_vfs->szOsFile;
    faulty_vfs.xOpen = faulty_open;
    faulty_vfs.pNext = NULL;
    if (sqlite3_vfs_register(&faulty_vfs, 1) != SQLITE_OK)
        abort();
}

#endif
