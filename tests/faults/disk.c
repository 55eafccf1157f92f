/* A disk of which the power may fail, or which fails itself: preloaded, by what these variables of the environment say.

   DISK_DIRECTORY  the files that are meant: all in this directory, and below it
   DISK_KEEPS      a directory, in which of each file the content is kept that it had when it was last synchronised
   DISK_FAILS      a file: while it exists, synchronising fails (EIO)
   DISK_READ_ONLY  a file: while it exists, nothing can be written (EROFS)
*/

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Where a file is below the directory; NULL where it is elsewhere. */
static const char *place_of_path(const char *path)
{
    const char *directory = getenv("DISK_DIRECTORY");
    if (directory == NULL)
        return NULL;
    size_t length = strlen(directory);
    return strncmp(path, directory, length) == 0 && path[length] == '/' ? path + length + 1 : NULL;
}

/* The same of an open file. */
static const char *place_of(int descriptor, char path[PATH_MAX])
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    path[length] = '\0';
    return place_of_path(path);
}

/* Where the content of a file is kept, by its place. */
static void name_of_kept(const char *place, char kept[PATH_MAX])
{
    int start = snprintf(kept, PATH_MAX, "%s/", getenv("DISK_KEEPS"));
    snprintf(kept + start, PATH_MAX - start, "%s", place);
    for (char *letter = kept + start; *letter; letter++)
        if (*letter == '/')
            *letter = '%';
}

static int is_so(const char *variable)
{
    const char *file = getenv(variable);
    return file != NULL && access(file, F_OK) == 0;
}

static void copy(int descriptor, const char *target)
{
    static __thread char buffer[1 << 16];
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    int source = open(name, O_RDONLY | O_CLOEXEC), copied = open(target, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ssize_t count;
    while (source >= 0 && copied >= 0 && (count = read(source, buffer, sizeof buffer)) > 0)
        if (syscall(SYS_write, copied, buffer, count) != count)
            abort();
    if (source >= 0)
        close(source);
    if (copied >= 0)
        close(copied);
}

static void keep(int descriptor)
{
    char path[PATH_MAX], kept[PATH_MAX], fresh[PATH_MAX + 8];
    const char *keeps = getenv("DISK_KEEPS"), *place = place_of(descriptor, path);
    if (keeps == NULL || place == NULL)
        return;
    int before = errno;
    name_of_kept(place, kept);
    snprintf(fresh, sizeof fresh, "%s.fresh", kept);
    int lock = open(keeps, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    flock(lock, LOCK_EX);
    copy(descriptor, fresh);
    rename(fresh, kept);
    close(lock);
    errno = before;
}

/* A file that was synchronised under one name has its content under the next one too. */
static void rename_kept(const char *before, const char *after, int (*call)(const char *, const char *))
{
    char from[PATH_MAX], to[PATH_MAX];
    const char *place = place_of_path(before), *next = place_of_path(after);
    if (getenv("DISK_KEEPS") == NULL || place == NULL || next == NULL)
        return;
    int error = errno;
    name_of_kept(place, from);
    name_of_kept(next, to);
    call(from, to);
    errno = error;
}

static int call_rename(const char *before, const char *after)
{
    return (int)syscall(SYS_rename, before, after);
}

static int call_link(const char *before, const char *after)
{
    unlink(after);
    return (int)syscall(SYS_link, before, after);
}

int rename(const char *before, const char *after)
{
    int result = call_rename(before, after);
    if (result == 0)
        rename_kept(before, after, call_rename);
    return result;
}

int link(const char *before, const char *after)
{
    int result = (int)syscall(SYS_link, before, after);
    if (result == 0)
        rename_kept(before, after, call_link);
    return result;
}

static int synchronise(long call, int descriptor)
{
    char path[PATH_MAX];
    if (is_so("DISK_FAILS") && place_of(descriptor, path) != NULL) {
        errno = EIO;
        return -1;
    }
    int result = (int)syscall(call, descriptor);
    if (result == 0)
        keep(descriptor);
    return result;
}

int fsync(int descriptor)
{
    return synchronise(SYS_fsync, descriptor);
}

int fdatasync(int descriptor)
{
    return synchronise(SYS_fdatasync, descriptor);
}

static int is_read_only(int descriptor)
{
    char path[PATH_MAX];
    if (!is_so("DISK_READ_ONLY") || place_of(descriptor, path) == NULL)
        return 0;
    errno = EROFS;
    return 1;
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t offset)
{
    return is_read_only(descriptor) ? -1 : syscall(SYS_pwrite64, descriptor, bytes, count, offset);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset)
{
    return pwrite64(descriptor, bytes, count, offset);
}

ssize_t write(int descriptor, const void *bytes, size_t count)
{
    return is_read_only(descriptor) ? -1 : syscall(SYS_write, descriptor, bytes, count);
}

int ftruncate64(int descriptor, off64_t length)
{
    return is_read_only(descriptor) ? -1 : (int)syscall(SYS_ftruncate, descriptor, length);
}

int ftruncate(int descriptor, off_t length)
{
    return ftruncate64(descriptor, length);
}
