/*
 * The lane on a kernel, daemons and an L1 that are played here: random requests, lies and deaths.
 *
 *      lane_fuzz SECONDS SEED [threads]
 *
 * With `threads` the kernel has no asynchronous reads. Built with -Dsyscall=played_syscall, for the system calls of disk.c.
 *
 * The lane (lane.c, hits.c, kept.c, without Python) reads requests from a socket instead of /dev/fuse. Checked is:
 *  - the lane answers each request once, if it can be answered (or a daemon has answered the kernel itself), else never;
 *  - a read that is answered without an error has the bytes of its file, whoever answered it;
 *  - in the end nothing is kept, and every thread ends.
 * The rest is for the sanitizers to see. It ends with 1 if something was wrong.
 */
#include "../../../mount_helper/lane.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#undef syscall
long syscall(long number, ...);
long played_syscall(long number, ...);

#define FILE_BYTES 65436ULL /* of every file: 16 chunks, the last one not full */
#define CHUNK_BYTES 4096
#define SLOTS 24
#define IMAGE 2 /* the inode that has a table; the daemon knows others too */
#define MOST_REQUESTS (1u << 20)
#define IN_FLIGHT 64
#define MESSAGE_BYTES (2 << 20)
#define HEADER sizeof(struct fuse_in_header)
#define READ_BYTES (HEADER + sizeof(struct fuse_read_in))
#define LATE_MOST 8
#define CACHESTAT 451

enum expected { ONCE, MAYBE, NEVER };

struct sent {
    atomic_uint expected, by_lane, by_daemon; /* how it is answered */
    uint64_t inode, offset;                   /* of a READ; written before it is sent */
    uint32_t size;
    bool is_read;
};

struct thread {
    pthread_t thread;
    uint64_t random;
};

static struct lane *lane;
static struct board *board;
static int kernel_fd;
static struct sent *sent;
static atomic_uint sent_count, open_count, wrong, deaths;
static atomic_bool stop, is_over;
static bool has_no_aio;
static atomic_uint faults, disk_random;
static pthread_mutex_t submitting = PTHREAD_MUTEX_INITIALIZER;

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state >> 8;
}

static void say_wrong(const char *what, uint64_t unique) {
    atomic_fetch_add(&wrong, 1);
    fprintf(stderr, "wrong: %s (unique %llu)\n", what, (unsigned long long)unique);
}

static unsigned char content(uint64_t inode, uint64_t offset) {
    return (unsigned char)((offset >> 12) * 37 + offset * 13 + inode * 101);
}

static uint32_t put_content(unsigned char *to, uint64_t inode, uint64_t offset, uint32_t size) {
    uint64_t left = offset < FILE_BYTES ? FILE_BYTES - offset : 0;
    uint32_t length = left < size ? (uint32_t)left : size;
    for (uint32_t i = 0; i < length; i++)
        to[i] = content(inode, offset + i);
    return length;
}

static int new_pair(int *other) {
    int pair[2], most = 4 << 20;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        abort();
    for (int i = 0; i < 2; i++)
        if (setsockopt(pair[i], SOL_SOCKET, SO_SNDBUFFORCE, &most, sizeof most))
            setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &most, sizeof most);
    *other = pair[1];
    return pair[0];
}

/* ---- The kernel: its disk ---- */

static uint32_t disk_chance(uint32_t of) {
    uint32_t value = atomic_fetch_add(&disk_random, 0x9E3779B9u) * 0x85EBCA6Bu;
    return (value >> 13) % of;
}

/* Reads fail, are short or late; what is in memory nobody knows. */
static long spoil(struct io_event *events, long count) {
    pthread_mutex_lock(&submitting); /* for the thread sanitizer: what submit has written was written before */
    pthread_mutex_unlock(&submitting);
    for (long i = 0; i < count; i++) {
        uint32_t chance = disk_chance(16);
        if (chance == 0)
            events[i].res = -EIO;
        else if (chance == 1)
            events[i].res = -EAGAIN;
        else if (chance == 2)
            events[i].res /= 2;
        atomic_fetch_add(&faults, chance < 3);
    }
    if (disk_chance(4) == 0)
        usleep(disk_chance(2000));
    return count;
}

static long submit(unsigned long context, long count, struct iocb **blocks) {
    uint32_t chance = disk_chance(32);
    if (chance == 0) {
        errno = EAGAIN;
        return -1;
    }
    pthread_mutex_lock(&submitting);
    for (long i = 0; i < count; i++)
        blocks[i]->aio_rw_flags = 0; /* it would refuse most: what is read here has just been written */
    pthread_mutex_unlock(&submitting);
    return syscall(SYS_io_submit, context, chance == 1 && count > 1 ? count - 1 : count, blocks);
}

long played_syscall(long number, ...) {
    va_list list;
    long argument[5];
    va_start(list, number);
    for (int i = 0; i < 5; i++)
        argument[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_io_setup && has_no_aio) {
        errno = EPERM;
        return -1;
    }
    if (number == CACHESTAT && (int)argument[0] < 0) {
        errno = EBADF;
        return -1;
    }
    if (number == CACHESTAT) {
        memset((void *)argument[2], disk_chance(2) ? 0 : 0x7f, 5 * sizeof(uint64_t));
        return 0;
    }
    if (number == SYS_io_submit)
        return submit((unsigned long)argument[0], argument[1], (struct iocb **)argument[2]);
    long result = syscall(number, argument[0], argument[1], argument[2], argument[3], argument[4]);
    return number == SYS_io_getevents ? spoil((struct io_event *)argument[3], result) : result;
}

/* ---- The kernel: answers ---- */

static struct sent *find_sent(uint64_t unique) {
    return unique >= 2 && unique / 2 <= atomic_load(&sent_count) ? &sent[unique / 2 - 1] : NULL;
}

static void check_bytes(const struct sent *request, const struct fuse_out_header *reply) {
    const unsigned char *bytes = (const void *)(reply + 1);
    uint32_t length = reply->len - (uint32_t)sizeof *reply;
    uint64_t left = request->offset < FILE_BYTES ? FILE_BYTES - request->offset : 0;
    uint64_t wanted = left < request->size ? left : request->size;
    if (request->size > MAX_READ && !length)
        return; /* answered as the end of the file */
    if (length != wanted)
        return say_wrong("length of a read", reply->unique);
    for (uint32_t i = 0; i < length; i++)
        if (bytes[i] != content(request->inode, request->offset + i))
            return say_wrong("byte of a read", reply->unique);
}

static void take_answer(const struct fuse_out_header *reply, bool is_by_lane) {
    struct sent *request = find_sent(reply->unique);
    if (!reply->unique)
        return; /* a notification */
    if (reply->unique & 1) {
        if (reply->error != -EAGAIN)
            say_wrong("answer to an INTERRUPT", reply->unique);
        return;
    }
    if (reply->error == -HOLD_ERROR)
        return say_wrong("the kernel was told to hold", reply->unique);
    if (!request)
        return say_wrong("answer to nothing", reply->unique);
    uint32_t before = atomic_fetch_add(is_by_lane ? &request->by_lane : &request->by_daemon, 1);
    uint32_t other = atomic_load(is_by_lane ? &request->by_daemon : &request->by_lane);
    if (atomic_load(&request->expected) == NEVER)
        return say_wrong("answer to what has none", reply->unique);
    if (is_by_lane && before)
        return say_wrong("two answers of the lane", reply->unique);
    if (request->is_read && reply->error == 0)
        check_bytes(request, reply);
    if (!before && !other && atomic_load(&request->expected) == ONCE)
        atomic_fetch_sub(&open_count, 1);
}

static void *answers_loop(void *argument) {
    unsigned char *message = malloc(MESSAGE_BYTES);
    (void)argument;
    while (!atomic_load(&is_over)) {
        struct pollfd poll_fd = {.fd = kernel_fd, .events = POLLIN};
        if (poll(&poll_fd, 1, 50) <= 0)
            continue;
        ssize_t length = recv(kernel_fd, message, MESSAGE_BYTES, MSG_DONTWAIT);
        const struct fuse_out_header *reply = (void *)message;
        if (length <= 0)
            continue;
        if ((size_t)length < sizeof *reply || reply->len != (size_t)length)
            say_wrong("form of an answer", 0);
        else
            take_answer(reply, true);
    }
    free(message);
    return NULL;
}

/* ---- The kernel: requests ---- */

static enum expected expected_of(const struct fuse_in_header *request, size_t length) {
    if (length < HEADER || request->len != length || length > REQUEST_SIZE)
        return NEVER;
    if (request->opcode == FUSE_INTERRUPT)
        return MAYBE;
    bool has_none = request->opcode == FUSE_FORGET || request->opcode == FUSE_BATCH_FORGET ||
                    request->opcode == FUSE_NOTIFY_REPLY;
    return has_none ? NEVER : ONCE;
}

static void send_request(unsigned char *message, size_t length) {
    struct fuse_in_header *request = (void *)message;
    uint32_t index = atomic_load(&sent_count);
    bool is_odd = length >= HEADER && request->unique & 1;
    struct sent *entry = &sent[index];
    if (!is_odd) {
        const struct fuse_read_in *read = (void *)(request + 1);
        if (length >= HEADER)
            request->unique = 2 * (uint64_t)(index + 1);
        enum expected expected = expected_of(request, length);
        entry->is_read = expected == ONCE && request->opcode == FUSE_READ && length >= READ_BYTES;
        entry->inode = request->nodeid;
        entry->offset = read->offset;
        entry->size = read->size;
        atomic_store(&entry->expected, expected);
        if (expected == ONCE)
            atomic_fetch_add(&open_count, 1);
        atomic_store(&sent_count, index + 1);
    }
    if (send(kernel_fd, message, length, MSG_NOSIGNAL) < 0)
        say_wrong("the lane takes no requests", request->unique);
}

static uint64_t wild(uint64_t *random) {
    static const uint64_t values[] = {0,          1,          4095,           4096,           65435,      65436,
                                      1 << 20,    1ULL << 32, 1ULL << 47,     (1ULL << 48) - 1, 1ULL << 48,
                                      INT64_MAX,  1ULL << 63, UINT64_MAX - 1, UINT64_MAX};
    uint64_t pick = next_random(random) % (sizeof values / sizeof *values + 4);
    return pick < sizeof values / sizeof *values ? values[pick] + next_random(random) % 3 - 1 : next_random(random);
}

/* A READ; mostly one that is right. */
static size_t make_read(unsigned char *message, uint64_t *random) {
    struct fuse_in_header *request = (void *)message;
    struct fuse_read_in *read = (void *)(request + 1);
    bool is_wild = next_random(random) % 8 == 0;
    request->opcode = FUSE_READ;
    request->nodeid = is_wild ? wild(random) : next_random(random) % 4 ? IMAGE : 3;
    read->offset = is_wild ? wild(random) : next_random(random) % (FILE_BYTES + 5000);
    if (!is_wild && next_random(random) % 2)
        read->offset &= ~4095ULL;
    if (is_wild)
        read->size = (uint32_t)wild(random);
    else
        read->size = (uint32_t)(next_random(random) % 3 ? next_random(random) % 4097 : next_random(random) % 70000);
    return READ_BYTES + (next_random(random) % 64 ? 0 : 8);
}

static size_t make_interrupt(unsigned char *message, uint64_t *random) {
    struct fuse_in_header *request = (void *)message;
    struct fuse_interrupt_in *interrupt = (void *)(request + 1);
    uint64_t back = next_random(random) % 32;
    uint32_t count = atomic_load(&sent_count);
    request->opcode = FUSE_INTERRUPT;
    interrupt->unique = 2 * (uint64_t)(count > back ? count - back : 1);
    request->unique = interrupt->unique | 1;
    return HEADER + (next_random(random) % 16 ? sizeof *interrupt : 4);
}

static size_t make_any(unsigned char *message, uint64_t *random) {
    struct fuse_in_header *request = (void *)message;
    static const uint32_t opcodes[] = {FUSE_LOOKUP, FUSE_GETATTR, FUSE_OPEN,  FUSE_RELEASE,      FUSE_FORGET,
                                       FUSE_FLUSH,  FUSE_STATFS,  FUSE_INIT,  FUSE_BATCH_FORGET, FUSE_NOTIFY_REPLY,
                                       FUSE_WRITE,  FUSE_DESTROY, CUSE_INIT,  FUSE_READ,         FUSE_INTERRUPT};
    uint64_t pick = next_random(random) % (sizeof opcodes / sizeof *opcodes + 3);
    request->opcode = pick < sizeof opcodes / sizeof *opcodes ? opcodes[pick] : (uint32_t)next_random(random);
    request->nodeid = next_random(random) % 2 ? IMAGE : wild(random);
    size_t payload = next_random(random) % 64 ? next_random(random) % 500 : next_random(random) % (REQUEST_SIZE + 5000);
    for (size_t i = 0; i < payload; i += 7)
        message[HEADER + i] = (unsigned char)next_random(random);
    return HEADER + payload;
}

static void make_and_send(unsigned char *message, uint64_t *random) {
    struct fuse_in_header *request = (void *)message;
    memset(message, 0, 4096);
    uint64_t kind = next_random(random) % 32;
    size_t length = kind < 22 ? make_read(message, random)
                              : kind < 25 ? make_interrupt(message, random) : make_any(message, random);
    request->len = (uint32_t)length;
    request->pid = next_random(random) % 3 ? (uint32_t)getpid() : (uint32_t)wild(random);
    if (kind == 31) { /* a length that is not the message's */
        request->len = (uint32_t)wild(random);
        length = 1 + next_random(random) % length;
    }
    send_request(message, length);
}

static void *requests_loop(void *argument) {
    struct thread *self = argument;
    unsigned char *message = calloc(1, REQUEST_SIZE + 8192);
    struct fuse_in_header *request = (void *)message;
    struct fuse_init_in *init = (void *)(request + 1);
    *request = (struct fuse_in_header){.len = HEADER + sizeof *init, .opcode = FUSE_INIT};
    *init = (struct fuse_init_in){.major = 7, .minor = 36};
    send_request(message, request->len);
    while (!atomic_load(&stop) && atomic_load(&sent_count) < MOST_REQUESTS) {
        if (atomic_load(&open_count) < IN_FLIGHT)
            make_and_send(message, &self->random);
        else
            usleep(100);
    }
    free(message);
    return NULL;
}

/* ---- Daemons ---- */

struct reply {
    struct fuse_out_header header;
    unsigned char payload[MAX_READ + 64 * 1024];
};

struct daemon_player {
    uint64_t *random;
    int fd, reads_fd; /* reads_fd is -1: it takes reads like all else */
    struct reply *reply;
    struct fuse_out_header late[LATE_MOST];
};

/* The right answer. */
static void make_reply(struct daemon_player *self, const unsigned char *message, size_t length) {
    const struct fuse_in_header *request = (const void *)message;
    const struct fuse_read_in *read = (const void *)(request + 1);
    struct reply *reply = self->reply;
    reply->header = (struct fuse_out_header){.len = sizeof reply->header, .unique = request->unique};
    if (request->opcode == FUSE_READ && length < READ_BYTES) {
        reply->header.error = -EINVAL;
    } else if (request->opcode == FUSE_READ) {
        uint32_t size = read->size > MAX_READ ? MAX_READ : read->size;
        reply->header.len += put_content(reply->payload, request->nodeid, read->offset, size);
    } else if (next_random(self->random) % 2) {
        reply->header.error = -ENOSYS;
    } else {
        reply->header.len += (uint32_t)(next_random(self->random) % 200);
    }
}

static void say(struct daemon_player *self, size_t length) {
    send(self->fd, self->reply, length, MSG_NOSIGNAL);
}

/* An answer that is none. */
static void lie(struct daemon_player *self) {
    struct fuse_out_header *header = &self->reply->header;
    uint32_t length = header->len;
    uint64_t unique = header->unique;
    switch (next_random(self->random) % 6) {
    case 0: /* too short for anything */
        say(self, 1 + next_random(self->random) % 15);
        break;
    case 1: /* a length that is not the message's */
        header->len += 1 + (uint32_t)next_random(self->random) % 1000;
        say(self, length);
        break;
    case 2: /* a request that never was */
        header->unique += 1ULL << 40;
        say(self, length);
        break;
    case 3: /* a notification, sometimes a huge one */
        header->unique = 0;
        header->len = (uint32_t)sizeof *header + (uint32_t)(next_random(self->random) % MAX_READ);
        say(self, header->len);
        break;
    case 4: /* INIT once more */
        header->unique = 2;
        say(self, length);
        break;
    case 5: /* of an INTERRUPT */
        header->unique |= 1;
        say(self, length);
        break;
    }
    header->len = length;
    header->unique = unique;
}

/* Answer the reads that have come over their own socket; false: say something there that is no answer. */
static bool serve_reads(struct daemon_player *self) {
    struct passed_read reads[16];
    uint64_t answered[2 * 16];
    size_t count = 0;
    ssize_t length = recv(self->reads_fd, reads, sizeof reads, MSG_DONTWAIT);
    if (length < 0)
        return true;
    if (length % (ssize_t)sizeof *reads)
        say_wrong("form of reads", 0);
    for (size_t i = 0; i < (size_t)length / sizeof *reads; i++) {
        uint64_t mood = next_random(self->random) % 512;
        if (reads[i].size > MAX_READ || reads[i].device >= MAX_DEVICES)
            say_wrong("read that cannot be", reads[i].unique);
        if (mood == 0)
            continue; /* never */
        if (mood >= 10 && mood < 16) { /* the store is away: the lane is to ask again */
            answered[count++] = reads[i].unique | 1;
            continue;
        }
        self->reply->header = (struct fuse_out_header){.len = sizeof self->reply->header, .unique = reads[i].unique};
        if (mood == 1)
            self->reply->header.error = -EIO;
        else
            self->reply->header.len +=
                put_content(self->reply->payload, reads[i].inode, reads[i].offset, reads[i].size);
        take_answer(&self->reply->header, false);
        if (mood < 6)
            continue; /* it forgets to say so */
        answered[count++] = reads[i].unique;
        if (mood < 10) /* twice, or of no read at all */
            answered[count++] = mood < 8 ? reads[i].unique : next_random(self->random);
    }
    send(self->reads_fd, answered, count * sizeof *answered, MSG_NOSIGNAL);
    if (next_random(self->random) % 256)
        return true;
    send(self->reads_fd, answered, 1 + next_random(self->random) % 7, MSG_NOSIGNAL);
    return false;
}

static void serve_one(struct daemon_player *self, const unsigned char *message, size_t length) {
    const struct fuse_in_header *request = (const void *)message;
    bool is_read = request->opcode == FUSE_READ && length == READ_BYTES;
    uint64_t mood = next_random(self->random) % 64;
    if (length < HEADER || request->len != length)
        say_wrong("form of what a daemon gets", 0);
    if (request->opcode == FUSE_INTERRUPT || request->opcode == FUSE_FORGET || request->opcode == FUSE_BATCH_FORGET ||
        request->opcode == FUSE_NOTIFY_REPLY)
        return;
    if (mood == 0 && next_random(self->random) % 8 == 0)
        return; /* never */
    if (is_read && self->reads_fd >= 0)
        say_wrong("way of a read", request->unique);
    make_reply(self, message, length);
    if (mood < 24)
        lie(self);
    if (mood == 25) { /* too large, in truth or as it says */
        self->reply->header.len = MAX_READ + 2 * PAGE_SIZE;
        return say(self, self->reply->header.len);
    }
    if (mood == 26) { /* late */
        struct fuse_out_header *late = &self->late[next_random(self->random) % LATE_MOST], now = self->reply->header;
        self->reply->header = *late;
        *late = (struct fuse_out_header){.len = sizeof now, .error = -EIO, .unique = now.unique};
        if (!self->reply->header.unique)
            return;
    }
    if (mood == 28) { /* the store is away: the lane is to ask again */
        self->reply->header.len = sizeof self->reply->header;
        self->reply->header.error = -HOLD_ERROR;
    }
    say(self, self->reply->header.len);
    if (mood == 27) /* twice */
        say(self, self->reply->header.len);
}

static bool serve_init(struct daemon_player *self, const struct fuse_in_header *request) {
    struct fuse_init_out init = {.major = 7, .minor = 36, .max_write = 1 << 20, .flags = FUSE_MAX_PAGES};
    bool is_failure = next_random(self->random) % 16 == 0;
    self->reply->header = (struct fuse_out_header){.len = sizeof self->reply->header, .unique = request->unique};
    if (is_failure)
        self->reply->header.error = -EPROTO;
    else
        self->reply->header.len += (uint32_t)sizeof init;
    memcpy(self->reply->payload, &init, sizeof init);
    say(self, self->reply->header.len);
    return !is_failure;
}

/* One daemon's life; it dies after some requests, or when all is over. */
static void live(struct daemon_player *self, unsigned char *message) {
    uint64_t life = 1 + next_random(self->random) % 3000;
    bool is_well = true;
    memset(self->late, 0, sizeof self->late);
    for (uint64_t served = 0; is_well && !atomic_load(&is_over) && (served < life || atomic_load(&stop));) {
        struct pollfd polls[] = {{.fd = self->fd, .events = POLLIN}, {.fd = self->reads_fd, .events = POLLIN}};
        if (poll(polls, 2, 20) <= 0)
            continue;
        if (polls[1].revents)
            is_well = serve_reads(self);
        if (!polls[0].revents)
            continue;
        ssize_t length = recv(self->fd, message, MESSAGE_BYTES, MSG_DONTWAIT);
        if (length <= 0)
            break;
        served++;
        const struct fuse_in_header *request = (void *)message;
        if (request->opcode == FUSE_INIT && request->unique == 2)
            is_well = serve_init(self, request);
        else
            serve_one(self, message, (size_t)length);
    }
}

static void *daemons_loop(void *argument) {
    struct thread *self = argument;
    unsigned char *message = malloc(MESSAGE_BYTES);
    struct daemon_player player = {.random = &self->random, .reply = calloc(1, sizeof *player.reply)};
    while (!atomic_load(&is_over)) {
        int lanes_end, reads[2] = {-1, -1};
        player.fd = new_pair(&lanes_end);
        if (next_random(&self->random) % 4 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, reads))
            abort();
        player.reads_fd = reads[0];
        if (!lane_attach(lane, lanes_end, reads[1]))
            live(&player, message);
        close(player.fd);
        if (player.reads_fd >= 0)
            close(player.reads_fd);
        atomic_fetch_add(&deaths, 1);
        usleep(next_random(&self->random) % 3000);
    }
    free(player.reply);
    free(message);
    return NULL;
}

/* ---- L1 ---- */

static int new_segment(void) {
    char path[] = "/var/tmp/lane_fuzz.XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0 || unlink(path) || ftruncate(fd, SLOTS * CHUNK_BYTES))
        abort();
    return fd;
}

/* What Board.set_image does. */
static void set_image(uint64_t inode) {
    struct board_image *entry = &board->images[board_bucket(inode) * BOARD_WAYS];
    unsigned generation = atomic_load(&entry->generation);
    if (generation & 1)
        atomic_store(&entry->generation, ++generation);
    atomic_thread_fence(memory_order_seq_cst);
    atomic_store(&entry->inode, inode);
    atomic_store(&entry->size_bytes, FILE_BYTES);
    atomic_store(&entry->chunk_shift, 12);
    atomic_store(&entry->table_bytes, BOARD_PAGE);
    atomic_store(&entry->generation, generation + 1);
}

static void fill_slot(int fd, uint32_t slot, uint32_t index) {
    unsigned char block[CHUNK_BYTES];
    struct board_tag tag = {{index + 1, index + 100}};
    struct board_chunk *chunk = (struct board_chunk *)board->tables + index;
    memset(block, 0xee, sizeof block);
    if (pwrite(fd, block, sizeof block, (off_t)slot * CHUNK_BYTES) < 0)
        abort();
    for (uint32_t i = 0; i < CHUNK_BYTES; i++)
        block[i] = content(IMAGE, (uint64_t)index * CHUNK_BYTES + i);
    if (pwrite(fd, block, sizeof block, (off_t)slot * CHUNK_BYTES) < 0)
        abort();
    board_fill(board_slot(board, slot), tag);
    atomic_store(&chunk->tag[0], tag.word[0]);
    atomic_store(&chunk->tag[1], tag.word[1]);
    atomic_store(&chunk->hint, slot + 1);
}

static void *slots_loop(void *argument) {
    struct thread *self = argument;
    int fd = new_segment();
    set_image(IMAGE);
    if (lane_set_segment(lane, 0, fd))
        abort();
    for (uint64_t count = 1; !atomic_load(&is_over); count++) {
        if (count % 4096 == 0) { /* L1 has another file now */
            for (uint32_t slot = 0; slot < SLOTS; slot++)
                board_empty(board_slot(board, slot));
            close(fd);
            if (lane_set_segment(lane, 0, fd = new_segment()))
                abort();
            set_image(IMAGE);
        }
        if (count % 128 == 0 && fdatasync(fd) == 0)
            posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        uint32_t slot = next_random(&self->random) % SLOTS;
        board_empty(board_slot(board, slot));
        fill_slot(fd, slot, next_random(&self->random) % 16);
        usleep(20);
    }
    close(fd);
    return NULL;
}

/* ---- */

static void start(struct thread *thread, void *(*loop)(void *), uint64_t seed) {
    thread->random = seed * 0x9E3779B97F4A7C15ULL | 1;
    if (pthread_create(&thread->thread, NULL, loop, thread))
        abort();
}

static void set_up(void) {
    int board_fd = memfd_create("board", MFD_CLOEXEC), devices[MAX_DEVICES];
    if (board_fd < 0 || ftruncate(board_fd, (off_t)BOARD_BYTES))
        abort();
    board = mmap(NULL, BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, board_fd, 0);
    sent = calloc(MOST_REQUESTS + 1, sizeof *sent);
    if (board == MAP_FAILED || !sent)
        abort();
    close(board_fd);
    kernel_fd = new_pair(&devices[0]);
    lane = lane_new(devices, clone_devices(devices[0], devices, 2), board, MAX_READ);
    lane->crew.wanted = 2;
    lane->kept_limit_bytes = 1 << 20;
    lane->request_deadline_ns = lane->answer_deadline_ns = SECOND_NS / 2;
    lane->disk_patience_ns = SECOND_NS / 4;
    if (lane_start(lane))
        abort();
}

static uint64_t kept_count(void) {
    pthread_mutex_lock(&lane->mutex);
    uint64_t count = lane->kept.count;
    pthread_mutex_unlock(&lane->mutex);
    return count;
}

static void check_end(void) {
    for (int tries = 0; tries < 2000 && (kept_count() || atomic_load(&open_count)); tries++)
        usleep(10000);
    if (kept_count())
        say_wrong("requests are kept for ever", kept_count());
    for (uint32_t i = 0; i < atomic_load(&sent_count); i++)
        if (atomic_load(&sent[i].expected) == ONCE && !atomic_load(&sent[i].by_lane) &&
            !atomic_load(&sent[i].by_daemon))
            say_wrong("no answer", 2 * (uint64_t)(i + 1));
}

int main(int count, char **arguments) {
    double seconds = count > 1 ? atof(arguments[1]) : 2;
    uint64_t seed = count > 2 ? strtoull(arguments[2], NULL, 10) : 1;
    has_no_aio = count > 3;
    atomic_store(&disk_random, (uint32_t)seed);
    struct thread answers, requests, daemons, slots;
    set_up();
    start(&answers, answers_loop, seed);
    start(&slots, slots_loop, seed + 1);
    start(&daemons, daemons_loop, seed + 2);
    start(&requests, requests_loop, seed + 3);
    for (int ticks = (int)(seconds * 10); ticks > 0 && atomic_load(&sent_count) < MOST_REQUESTS; ticks--)
        usleep(100000);
    atomic_store(&stop, true);
    pthread_join(requests.thread, NULL);
    check_end();
    atomic_store(&is_over, true);
    pthread_join(daemons.thread, NULL);
    pthread_join(slots.thread, NULL);
    pthread_join(answers.thread, NULL);
    unsigned long long hits = 0, changed = 0, on_disk = 0, passed = 0, reasons = 0;
    for (int i = 0; i < BOARD_THREADS; i++) {
        passed += atomic_load(&board->counters[i].value[COUNTER_passed_reads]);
        for (int reason = COUNTER_unknown_image; reason <= COUNTER_disk_busy; reason++)
            reasons += atomic_load(&board->counters[i].value[reason]);
        hits += atomic_load(&board->counters[i].value[COUNTER_hits]);
        changed += atomic_load(&board->counters[i].value[COUNTER_changed]);
        on_disk += atomic_load(&board->counters[i].value[COUNTER_disk_reads]);
    }
    unsigned long long given_back = atomic_load(&lane->count.given_back);
    printf("requests %u, hits %llu, changed %llu, from disk %llu, past the page cache %llu, deaths %u, given back %llu, "
           "malformed %llu\n",
           atomic_load(&sent_count), hits, changed, on_disk, atomic_load(&lane->count.disk_direct), atomic_load(&deaths),
           given_back, (unsigned long long)atomic_load(&lane->count.requests_malformed));
    if (passed != reasons)
        say_wrong("reads were passed on without a reason, or the other way round", 0);
    bool is_on_disk = atomic_load(&lane->count.disk_direct) && atomic_load(&faults);
    if (!hits || !given_back || lane->kept.held || !atomic_load(&deaths) || (has_no_aio ? !on_disk : !is_on_disk))
        say_wrong("too little happened", 0);
    lane_close(lane);
    close(kernel_fd);
    free(sent);
    return atomic_load(&wrong) != 0;
}
