/* Lets one chosen system call of a process fail. Preloaded; armed from within by fault_arm.
 *
 * fault_arm(n, kind): the n-th call from now (from 1) gets the fault; n = 0 only counts.
 * Kinds: 0 none, 1 KILL, 2 ENOSPC, 3 EIO, 4 EINTR once, 5 a short write.
 * fault_count(): calls since it was armed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long left, count, kind, armed;

void fault_arm(long n, long which) { left = n; kind = which; count = 0; armed = 1; }
long fault_count(void) { return count; }
void fault_disarm(void) { armed = 0; }

/* Returns 1 if this call is to fail, with errno set; 2 if it is to be short. */
static int strikes(int writes) {
    if (!armed) return 0;
    count++;
    if (left == 0 || count != left) return 0;
    switch (kind) {
    case 1: kill(getpid(), SIGKILL); return 0;
    case 2: errno = ENOSPC; return 1;
    case 3: errno = EIO; return 1;
    case 4: errno = EINTR; return 1;
    case 5: return writes ? 2 : 0;
    }
    return 0;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define PLAIN(type, name, params, args) \
    type name params { REAL(name); if (strikes(0)) return -1; return real args; }

PLAIN(int, fsync, (int fd), (fd))
PLAIN(int, rename, (const char *a, const char *b), (a, b))
PLAIN(int, mkdir, (const char *p, mode_t m), (p, m))
PLAIN(int, unlink, (const char *p), (p))
PLAIN(int, unlinkat, (int d, const char *p, int f), (d, p, f))
PLAIN(int, rmdir, (const char *p), (p))
PLAIN(int, ftruncate, (int fd, off_t n), (fd, n))
PLAIN(int, ftruncate64, (int fd, off64_t n), (fd, n))

/* close is not let fail: on Linux the descriptor is gone all the same. It can be killed in. */
int close(int fd) {
    REAL(close);
    if (kind == 1) strikes(0);
    return real(fd);
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    int how = strikes(1);
    if (how == 1) return -1;
    return real(fd, data, how == 2 && size > 1 ? size / 2 : size);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); } \
        if (strikes(0)) return -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
