/* A slow disk: preloaded, it has a program wait for some milliseconds before and after a file is on the disk.
   A program that is killed at any moment is then mostly killed amid a commit. */

#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LONGEST 8000000 /* nanoseconds */

static void pause_a_little(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct timespec pause = {0, now.tv_nsec % LONGEST};
    nanosleep(&pause, NULL);
}

int fdatasync(int descriptor)
{
    pause_a_little();
    int result = (int)syscall(SYS_fdatasync, descriptor);
    pause_a_little();
    return result;
}

int fsync(int descriptor)
{
    pause_a_little();
    int result = (int)syscall(SYS_fsync, descriptor);
    pause_a_little();
    return result;
}
