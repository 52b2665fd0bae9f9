/*
 * A disk that fails, for a process that has this preloaded: reads and writes of the files below one folder.
 *
 *      LD_PRELOAD=faulty_disk.so FAULTY_DISK_FOLDER=/the/folder FAULTY_DISK_CONTROL=/a/file
 *
 * The file is mapped by all processes: errno of reads, errno of writes, delay of both in ms; 0 is none. What the page
 * cache holds fails as well, as if it had to come from the disk.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    atomic_int read_error, write_error, delay_ms;
};

static struct control *control;
static const char *folder;

__attribute__((constructor)) static void set_up(void) {
    const char *path = getenv("FAULTY_DISK_CONTROL");
    folder = getenv("FAULTY_DISK_FOLDER");
    int fd = path && folder ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *found = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    control = found == MAP_FAILED ? NULL : found;
}

static bool is_on_disk(int fd) {
    char link[64], path[4096];
    if (!control || !(control->read_error || control->write_error || control->delay_ms))
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    size_t prefix = strlen(folder);
    return length > (ssize_t)prefix && !memcmp(path, folder, prefix) && path[prefix] == '/';
}

/* The errno that a call fails with, after a while; 0: it does not. */
static int fault_of(int fd, bool is_read, bool may_wait) {
    if (!is_on_disk(fd))
        return 0;
    int error = is_read ? control->read_error : control->write_error, delay_ms = control->delay_ms;
    if (delay_ms && !may_wait)
        return EAGAIN;
    if (delay_ms)
        nanosleep(&(struct timespec){.tv_sec = delay_ms / 1000, .tv_nsec = delay_ms % 1000 * 1000000L}, NULL);
    return error;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_OR_CALL(fd, is_read, may_wait, name, ...)                                                                 \
    int error = fault_of(fd, is_read, may_wait);                                                                       \
    if (error) {                                                                                                       \
        errno = error;                                                                                                 \
        return -1;                                                                                                     \
    }                                                                                                                  \
    return REAL(name)(__VA_ARGS__)

ssize_t pread64(int fd, void *to, size_t size, off64_t at) {
    FAIL_OR_CALL(fd, true, true, pread64, fd, to, size, at);
}
ssize_t pread(int fd, void *to, size_t size, off_t at) {
    FAIL_OR_CALL(fd, true, true, pread, fd, to, size, at);
}
ssize_t preadv64v2(int fd, const struct iovec *to, int count, off64_t at, int flags) {
    FAIL_OR_CALL(fd, true, !(flags & RWF_NOWAIT), preadv64v2, fd, to, count, at, flags);
}
ssize_t preadv2(int fd, const struct iovec *to, int count, off_t at, int flags) {
    FAIL_OR_CALL(fd, true, !(flags & RWF_NOWAIT), preadv2, fd, to, count, at, flags);
}
ssize_t preadv64(int fd, const struct iovec *to, int count, off64_t at) {
    FAIL_OR_CALL(fd, true, true, preadv64, fd, to, count, at);
}
ssize_t preadv(int fd, const struct iovec *to, int count, off_t at) {
    FAIL_OR_CALL(fd, true, true, preadv, fd, to, count, at);
}
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
    FAIL_OR_CALL(fd, false, true, pwrite64, fd, from, size, at);
}
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
    FAIL_OR_CALL(fd, false, true, pwrite, fd, from, size, at);
}
ssize_t pwritev64(int fd, const struct iovec *from, int count, off64_t at) {
    FAIL_OR_CALL(fd, false, true, pwritev64, fd, from, count, at);
}
ssize_t pwritev(int fd, const struct iovec *from, int count, off_t at) {
    FAIL_OR_CALL(fd, false, true, pwritev, fd, from, count, at);
}
ssize_t pwritev64v2(int fd, const struct iovec *from, int count, off64_t at, int flags) {
    FAIL_OR_CALL(fd, false, true, pwritev64v2, fd, from, count, at, flags);
}
ssize_t pwritev2(int fd, const struct iovec *from, int count, off_t at, int flags) {
    FAIL_OR_CALL(fd, false, true, pwritev2, fd, from, count, at, flags);
}
ssize_t write(int fd, const void *from, size_t size) {
    FAIL_OR_CALL(fd, false, true, write, fd, from, size);
}
int fdatasync(int fd) {
    FAIL_OR_CALL(fd, false, true, fdatasync, fd);
}
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    int error = fault_of(fd, false, true);
    return error ? error : REAL(posix_fallocate64)(fd, at, size);
}
int posix_fallocate(int fd, off_t at, off_t size) {
    int error = fault_of(fd, false, true);
    return error ? error : REAL(posix_fallocate)(fd, at, size);
}
int fallocate64(int fd, int mode, off64_t at, off64_t size) {
    FAIL_OR_CALL(fd, false, true, fallocate64, fd, mode, at, size);
}
int fallocate(int fd, int mode, off_t at, off_t size) {
    FAIL_OR_CALL(fd, false, true, fallocate, fd, mode, at, size);
}
