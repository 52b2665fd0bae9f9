/*
 * The lane: the owner of /dev/fuse.
 *
 * It stands between the kernel and the daemon. A request that the kernel writes is kept, and sent to the daemon over a
 * SOCK_SEQPACKET socket (one message a request, one a reply: libfuse takes such a socket for its device). The copy is
 * dropped when the reply has come. So a daemon may die at any moment: what it had not answered is still here, and the
 * next daemon gets it. Nobody who reads through the mount sees more than a delay.
 *
 *      kernel --read-->   carrier thread   --send--> daemon      (or the table only, while there is no daemon)
 *      kernel <--write--  carrier thread   <--recv-- daemon
 *      kernel <--write--  notifier thread  <-- queue             (the daemon's invalidations)
 *
 * One thread carries both ways: a second one for the replies is one more wake-up for each, and measured slower. Four
 * times a second, if anything is kept, it looks at deadlines and killed readers.
 *
 * Why the notifier is a thread of its own: the kernel takes inode locks while it is told to invalidate, and a lookup
 * holds that lock until its reply is written. The thread that writes replies must never wait for it.
 *
 * Who may answer a request. Whoever takes it out of the table (under the lock) writes the one answer to the kernel; a
 * reply whose request is not in the table is dropped. Uniques are never used twice by the kernel. So it is harmless
 * that a request is sent to two daemons, that the first one's reply was still in the socket when the second one got the
 * request, or that an answer comes late: one of the replies wins, both are about the same request, and the kernel gets
 * exactly one. It is needed for this that inode numbers and file handles mean the same in every daemon.
 *
 * Each kept request is either `waiting` (no daemon has it) or `sent` (the daemon with that serial number has it):
 *      read from the kernel -> waiting or sent;  sent, its daemon is lost -> waiting;  waiting, a daemon is there -> sent
 * A daemon is lost when its socket is at its end, that is, after all of its replies have been read from it.
 *
 * FUSE_INIT is kept for ever and is the first message to every daemon, because libfuse refuses all else before it. The
 * first reply goes to the kernel, later ones are dropped; a daemon becomes `current` (gets requests) with its INIT reply.
 *
 * Locks: one mutex for the table, the daemons and the queue. Nothing blocks under it: /dev/fuse and the sockets are
 * used without blocking. The threads know nothing of Python and never hold the GIL.
 */
#define PY_SSIZE_T_CLEAN
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define HASH_SIZE 4096 /* buckets; uniques count up in steps of 2, so they spread evenly */
#define INLINE_SIZE 400 /* bytes: READ has 80, LOOKUP at most 296 */
#define CARRIER_NICE -15
#define SLAB_SIZE 64    /* kept requests allocated at a time */
#define MAX_WRITE (128 * 1024)
#define REQUEST_SIZE (MAX_WRITE + 64 * 1024) /* the kernel refuses less than max_write + 4096; xattrs have 64 KiB */
#define PAGE_SIZE 4096
#define REPLY_OVERHEAD PAGE_SIZE
#define NOTIFICATION_LIMIT_BYTES (16 * 1024 * 1024)
#define TICK_NS 250000000ULL /* between looks at deadlines and killed readers */
#define CHECKS_PER_TICK 64   /* readers looked up in /proc; 20 us each */
#define MAX_DAEMONS 4        /* attached at once: one, and for a moment its successor */
#define OPCODES 64
#define SECOND_NS 1000000000ULL
#define INTERRUPT_BIT 1ULL /* set in the unique of an INTERRUPT; all other uniques are even */

enum event { EVENT_INIT_ANSWERED = 1, EVENT_DAEMON_LOST = 2, EVENT_UNMOUNTED = 4 };

#define COUNTERS(X)                                                                                                    \
    X(requests)                /* read from the kernel */                                                             \
    X(replies)                 /* of the daemon, written to the kernel */                                             \
    X(resent)                  /* sent again: their daemon was lost, or a deadline passed */                          \
    X(daemons_attached)        /* since the mount */                                                                  \
    X(daemons_lost)                                                                                                    \
    X(notifications)           /* written to the kernel */                                                            \
    X(notifications_dropped)   /* the queue was full */                                                               \
    X(notifications_refused)   /* by the kernel; ENOENT (it does not know the inode or name) is not counted */        \
    X(replies_unknown)         /* dropped: the request had been answered already */                                   \
    X(replies_malformed)       /* dropped */                                                                          \
    X(replies_oversize)        /* larger than the buffer: answered with EIO */                                        \
    X(requests_oversize)       /* larger than a message: answered with EIO */                                         \
    X(requests_deferred)       /* the daemon's socket was full: sent later */                                         \
    X(unanswerable_dropped)    /* FORGET and the like, while there was no daemon or no room */                        \
    X(kernel_gave_up)          /* replies that the kernel did not want any more (ENOENT) */                           \
    X(write_errors)            /* other errors of write to the kernel */                                              \
    X(requests_malformed)                                                                                              \
    X(interrupts)              /* INTERRUPT requests */                                                               \
    X(answered_killed)         /* answered here with EINTR: the reader was killed */                                  \
    X(answered_outage)         /* answered here with EIO: no daemon for request_deadline_s */                         \
    X(answered_late)           /* answered here with EIO: the daemon did not answer, twice */                         \
    X(throttled)               /* ticks at which requests were left in the kernel: too many are kept */

struct counters {
#define X(name) atomic_ullong name;
    COUNTERS(X)
#undef X
};

/* A request that the kernel waits for. Under lane.mutex. */
struct kept {
    struct kept *next, *previous; /* in lane.waiting or lane.sent */
    struct kept *chain;           /* in its hash bucket, or in the list of free ones */
    unsigned char *body;          /* the request: inline_body, or allocated when it is larger */
    uint64_t unique;
    uint64_t came_ns;       /* when it came */
    uint64_t since_ns;      /* when it came, or was last sent */
    uint64_t checked_ns;    /* when it came, or its reader was last looked up */
    uint64_t daemon_serial; /* 0: waiting */
    uint32_t length, opcode, pid;
    bool interrupted;
    bool sent_before; /* some daemon has had it */
    bool sent_again;  /* its daemon did not answer within the deadline */
    unsigned char inline_body[INLINE_SIZE];
};

struct list {
    struct kept *first, *last;
};

struct slab {
    struct slab *next;
    struct kept entries[SLAB_SIZE];
};

enum daemon_state { DAEMON_NEW, DAEMON_INIT_SENT, DAEMON_READY };

/* The arena: memory shared with a daemon, for the bytes of reads. arena.py says what it is and has the same layout. */
#define ARENA_MAGIC "CACHEFSR"
#define ARENA_VERSION 1
#define ARENA_BUFFERS 16
#define ARENA_BUFFER_BYTES (1 << 20)
#define ARENA_STATES_AT 64
#define ARENA_BUFFERS_AT 4096
#define ARENA_BYTES (ARENA_BUFFERS_AT + (size_t)ARENA_BUFFERS * ARENA_BUFFER_BYTES)
#define ARENA_INLINE 0xFFFFFFFF /* in place of a buffer: the bytes follow */

struct arena {
    char magic[8];
    uint32_t version, buffers;
    uint64_t buffer_bytes, cookie;
};

struct reference {
    uint64_t cookie;
    uint32_t buffer, length;
};

struct daemon {
    struct arena *arena; /* NULL: it shares none */
    int fd;
    uint64_t serial;
    enum daemon_state state;
};

struct notification {
    struct notification *next;
    size_t length;
    unsigned char message[];
};

struct lane {
    int fuse_fd, event_fd; /* event_fd: to the supervisor */
    int wake_fd;           /* to the carrier */
    uint32_t max_read, max_background;
    uint64_t request_deadline_ns, answer_deadline_ns; /* 0: none */
    uint64_t kept_limit_bytes;
    unsigned char *request_buffer;
    unsigned char *reply_pages, *reply_buffer; /* the buffer begins so that the data after the header fills whole pages */

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* a notification, a daemon's end, stop */
    struct kept *buckets[HASH_SIZE];
    struct list waiting, sent;
    struct kept *free_list;
    struct slab *slabs;
    uint64_t kept_count;
    uint64_t kept_bytes;

    unsigned char *init; /* the kernel's INIT request */
    uint32_t init_length;
    uint64_t init_unique;
    bool init_answered;

    struct daemon *daemons[MAX_DAEMONS]; /* freed by the carrier alone */
    struct daemon *current;              /* the one that gets the requests */
    uint64_t last_serial, detached_at_ns;

    struct notification *notifications, **notifications_end;
    size_t notification_bytes;

    pthread_t carrier, notifier;
    bool started;
    atomic_bool stop, unmounted;
    atomic_uint events;
    struct counters count;
    atomic_ullong passed_on[OPCODES];
};

#define COUNT(lane, name) atomic_fetch_add_explicit(&(lane)->count.name, 1, memory_order_relaxed)

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static void tell(struct lane *lane, enum event event) {
    uint64_t one = 1;
    atomic_fetch_or(&lane->events, (unsigned)event);
    if (write(lane->event_fd, &one, sizeof one) < 0) {
        /* the counter is full: the supervisor will see it anyway */
    }
}

static void kernel_unmounted(struct lane *lane) {
    if (!atomic_exchange(&lane->unmounted, true))
        tell(lane, EVENT_UNMOUNTED);
}

/* ---- The table of kept requests; all of it under lane.mutex ---- */

static void list_append(struct list *list, struct kept *kept) {
    kept->next = NULL;
    kept->previous = list->last;
    *(list->last ? &list->last->next : &list->first) = kept;
    list->last = kept;
}

static void list_remove(struct list *list, struct kept *kept) {
    *(kept->previous ? &kept->previous->next : &list->first) = kept->next;
    *(kept->next ? &kept->next->previous : &list->last) = kept->previous;
}

static struct list *list_of(struct lane *lane, const struct kept *kept) {
    return kept->daemon_serial ? &lane->sent : &lane->waiting;
}

static struct kept **bucket_of(struct lane *lane, uint64_t unique) {
    return &lane->buckets[(unique >> 1) % HASH_SIZE];
}

static struct kept *kept_find(struct lane *lane, uint64_t unique) {
    struct kept *kept = *bucket_of(lane, unique);
    while (kept && kept->unique != unique)
        kept = kept->chain;
    return kept;
}

static bool slab_add(struct lane *lane) {
    struct slab *slab = calloc(1, sizeof *slab);
    if (!slab)
        return false;
    slab->next = lane->slabs;
    lane->slabs = slab;
    for (int i = 0; i < SLAB_SIZE; i++) {
        slab->entries[i].chain = lane->free_list;
        lane->free_list = &slab->entries[i];
    }
    return true;
}

static uint64_t kept_size(const struct kept *kept) {
    return sizeof *kept + (kept->body == kept->inline_body ? 0 : kept->length);
}

/* Keep a copy of a request as `waiting`; NULL when there is no memory. */
static struct kept *kept_add(struct lane *lane, const struct fuse_in_header *request) {
    if (!lane->free_list && !slab_add(lane))
        return NULL;
    struct kept *kept = lane->free_list;
    unsigned char *body = request->len <= INLINE_SIZE ? kept->inline_body : malloc(request->len);
    if (!body)
        return NULL;
    lane->free_list = kept->chain;
    kept->body = memcpy(body, request, request->len);
    kept->unique = request->unique;
    kept->length = request->len;
    kept->opcode = request->opcode;
    kept->pid = request->pid;
    kept->came_ns = kept->since_ns = kept->checked_ns = now_ns();
    kept->daemon_serial = 0;
    kept->interrupted = kept->sent_before = kept->sent_again = false;
    struct kept **bucket = bucket_of(lane, request->unique);
    kept->chain = *bucket;
    *bucket = kept;
    list_append(&lane->waiting, kept);
    lane->kept_count++;
    lane->kept_bytes += kept_size(kept);
    return kept;
}

/* Take a request out of the table. Its opcode: it was there, and the caller is the one who answers it. 0: it was not. */
static uint32_t kept_take(struct lane *lane, uint64_t unique) {
    struct kept **link = bucket_of(lane, unique), *kept;
    while ((kept = *link) && kept->unique != unique)
        link = &kept->chain;
    if (!kept)
        return 0;
    *link = kept->chain;
    list_remove(list_of(lane, kept), kept);
    lane->kept_count--;
    lane->kept_bytes -= kept_size(kept);
    if (kept->body != kept->inline_body)
        free(kept->body);
    kept->chain = lane->free_list;
    lane->free_list = kept;
    return kept->opcode;
}

static void kept_move(struct lane *lane, struct kept *kept, uint64_t daemon_serial) {
    list_remove(list_of(lane, kept), kept);
    kept->daemon_serial = daemon_serial;
    kept->sent_before |= daemon_serial != 0;
    kept->since_ns = now_ns();
    list_append(list_of(lane, kept), kept);
}

/* ---- Answers to the kernel ---- */

static void answer_error(struct lane *lane, uint64_t unique, int error) {
    struct fuse_out_header header = {.len = sizeof header, .error = -error, .unique = unique};
    if (write(lane->fuse_fd, &header, sizeof header) < 0 && errno == ENODEV)
        kernel_unmounted(lane);
}

/*
 * Write a daemon's reply: its header, which says the whole length, and what follows it.
 * ENOENT: the kernel does not wait for it any more.
 */
static void answer(struct lane *lane, const struct fuse_out_header *reply, const void *payload) {
    struct iovec parts[] = {{(void *)reply, sizeof *reply}, {(void *)payload, reply->len - sizeof *reply}};
    if (writev(lane->fuse_fd, parts, parts[1].iov_len ? 2 : 1) >= 0) {
        COUNT(lane, replies);
    } else if (errno == ENOENT) {
        COUNT(lane, kernel_gave_up);
    } else if (errno == ENODEV) {
        kernel_unmounted(lane);
    } else { /* a reply that the kernel refuses as a whole must not leave its reader without an answer */
        COUNT(lane, write_errors);
        answer_error(lane, reply->unique, EIO);
    }
}

/* Answer a kept request here, with an error. */
static void answer_kept(struct lane *lane, uint64_t unique, int error) {
    if (kept_take(lane, unique))
        answer_error(lane, unique, error);
}

/* ---- To the daemon ---- */

static void free_buffer(struct daemon *daemon, uint32_t buffer) {
    atomic_uchar *states = (void *)((unsigned char *)daemon->arena + ARENA_STATES_AT);
    atomic_store_explicit(&states[buffer], 0, memory_order_release);
}

enum sent { SENT, SENT_LATER, SENT_NEVER };

/* Never blocks: a daemon that does not read its socket must not hold up the lane. */
static enum sent daemon_send(struct daemon *daemon, const void *message, size_t length) {
    while (send(daemon->fd, message, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        if (errno == EMSGSIZE)
            return SENT_NEVER;
        if (errno != EINTR)
            return SENT_LATER; /* full, no memory; or it is dead, which recv will tell */
    }
    return SENT;
}

static void send_kept(struct lane *lane, struct kept *kept) {
    enum sent sent = daemon_send(lane->current, kept->body, kept->length);
    if (sent == SENT) {
        kept_move(lane, kept, lane->current->serial);
    } else if (sent == SENT_LATER) {
        COUNT(lane, requests_deferred);
    } else {
        COUNT(lane, requests_oversize);
        answer_kept(lane, kept->unique, EIO);
    }
}

/* Send what waits to the current daemon, until its socket is full. */
static void send_waiting(struct lane *lane) {
    for (struct kept *kept = NULL; lane->current && lane->waiting.first && lane->waiting.first != kept;) {
        kept = lane->waiting.first;
        if (kept->sent_before)
            COUNT(lane, resent);
        send_kept(lane, kept);
    }
}

/* INIT to the daemons that have not got it yet, if the kernel has sent it. */
static void send_init(struct lane *lane) {
    for (int i = 0; i < MAX_DAEMONS && lane->init; i++) {
        struct daemon *daemon = lane->daemons[i];
        if (daemon && daemon->state == DAEMON_NEW && daemon_send(daemon, lane->init, lane->init_length) == SENT)
            daemon->state = DAEMON_INIT_SENT;
    }
}

/* ---- Requests ---- */

/* A message that the kernel expects no reply to: the daemon gets it, or nobody does. */
static void pass_unanswered(struct lane *lane, const struct fuse_in_header *request) {
    if (!lane->current || daemon_send(lane->current, request, request->len) != SENT)
        COUNT(lane, unanswerable_dropped);
}

static void pass_on(struct lane *lane, const struct fuse_in_header *request) {
    struct kept *kept = kept_add(lane, request);
    if (!kept)
        answer_error(lane, request->unique, ENOMEM);
    else if (lane->current)
        send_kept(lane, kept);
}

static void keep_init(struct lane *lane, const struct fuse_in_header *request) {
    unsigned char *copy = malloc(request->len);
    if (!copy)
        return answer_error(lane, request->unique, ENOMEM);
    lane->init = memcpy(copy, request, request->len);
    lane->init_length = request->len;
    lane->init_unique = request->unique;
    send_init(lane);
}

/* Read a small file of /proc; false if it is not there. */
static bool read_proc(uint32_t pid, const char *name, char *text, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/%s", pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t length = read(fd, text, size - 1);
    close(fd);
    text[length > 0 ? length : 0] = 0;
    return length > 0;
}

/* Is SIGKILL pending for this thread? (Any deadly signal becomes SIGKILL for every thread of the process.) */
static bool is_killed(uint32_t pid) {
    char text[4096];
    if (!pid || !read_proc(pid, "status", text, sizeof text))
        return false;
    const char *own = strstr(text, "\nSigPnd:"), *shared = strstr(text, "\nShdPnd:");
    unsigned long long pending = own ? strtoull(own + 8, NULL, 16) : 0;
    pending |= shared ? strtoull(shared + 8, NULL, 16) : 0;
    return pending >> (SIGKILL - 1) & 1;
}

/* Does this thread wait, uninterruptibly, in the middle of its exit? So does a killed user of libaio. */
static bool is_exiting(uint32_t pid) {
    char text[1024], state = 0;
    unsigned flags = 0;
    if (!pid || !read_proc(pid, "stat", text, sizeof text))
        return false;
    const char *after_name = strrchr(text, ')');
    if (!after_name || sscanf(after_name + 1, " %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2)
        return false;
    return state == 'D' && flags & 0x4; /* PF_EXITING */
}

/*
 * A signal has come for a thread that waits for a reply. If it kills, the thread waits on, uninterruptibly, until there
 * is an answer: give one, so that nobody depends on the daemon to die. If not, the daemon may know what to do with it;
 * the read itself must not fail because of a timer or a child's end.
 */
static void interrupt(struct lane *lane, const struct fuse_in_header *request) {
    const struct fuse_interrupt_in *argument = (const void *)(request + 1);
    if (request->len < sizeof *request + sizeof *argument)
        return;
    COUNT(lane, interrupts);
    struct kept *kept = kept_find(lane, argument->unique);
    if (!kept)
        return;
    kept->interrupted = true; /* the kernel tells it once: later looks find out whether a SIGKILL follows */
    if (is_killed(kept->pid)) {
        COUNT(lane, answered_killed);
        answer_kept(lane, argument->unique, EINTR);
    } else if (kept->daemon_serial) {
        pass_unanswered(lane, request);
    }
}

/* The one place where it is decided who deals with a request. */
static void dispatch(struct lane *lane, const struct fuse_in_header *request) {
    switch (request->opcode) {
    case FUSE_INIT:
        return keep_init(lane, request);
    case FUSE_INTERRUPT:
        return interrupt(lane, request);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_NOTIFY_REPLY:
        return pass_unanswered(lane, request);
    default:
        return pass_on(lane, request);
    }
}

/* Carry one request from the kernel; false at the end of the mount. */
static bool carry_request(struct lane *lane) {
    const struct fuse_in_header *request = (const void *)lane->request_buffer;
    ssize_t length = read(lane->fuse_fd, lane->request_buffer, REQUEST_SIZE);
    if (length < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
        return true; /* ENOENT: the request was taken back while it was read */
    if (length < 0) { /* ENODEV: unmounted; ECONNABORTED: through /sys/fs/fuse/connections */
        kernel_unmounted(lane);
        return false;
    }
    COUNT(lane, requests);
    if (length < (ssize_t)sizeof *request || request->len != (size_t)length) {
        COUNT(lane, requests_malformed);
        return true;
    }
    atomic_fetch_add_explicit(&lane->passed_on[request->opcode % OPCODES], 1, memory_order_relaxed);
    pthread_mutex_lock(&lane->mutex);
    dispatch(lane, request);
    pthread_mutex_unlock(&lane->mutex);
    return true;
}

/* ---- Replies ---- */

static void queue_notification(struct lane *lane, const struct fuse_out_header *message) {
    size_t size = sizeof(struct notification) + message->len;
    struct notification *notification = NULL;
    if (lane->notification_bytes + size <= NOTIFICATION_LIMIT_BYTES)
        notification = malloc(size);
    if (!notification) {
        COUNT(lane, notifications_dropped);
        return;
    }
    notification->next = NULL;
    notification->length = message->len;
    memcpy(notification->message, message, message->len);
    lane->notification_bytes += size;
    *lane->notifications_end = notification;
    lane->notifications_end = &notification->next;
    pthread_cond_broadcast(&lane->changed);
}

/* What the lane wants otherwise than libfuse: sizes that fit its buffers and the sockets. */
static void amend_init(struct lane *lane, struct fuse_out_header *reply) {
    struct fuse_init_out *init = (void *)(reply + 1);
    if (reply->error || reply->len < sizeof *reply + FUSE_COMPAT_22_INIT_OUT_SIZE)
        return;
    if (init->max_write > MAX_WRITE)
        init->max_write = MAX_WRITE;
    if (lane->max_background)
        init->max_background = (uint16_t)lane->max_background;
    if (lane->max_background)
        init->congestion_threshold = (uint16_t)(lane->max_background / 4 * 3);
    if (reply->len >= sizeof *reply + sizeof *init && init->flags & FUSE_MAX_PAGES)
        init->max_pages = (uint16_t)((lane->max_read + PAGE_SIZE - 1) / PAGE_SIZE);
}

static void handle_init_reply(struct lane *lane, struct daemon *daemon, struct fuse_out_header *reply) {
    if (daemon->state != DAEMON_INIT_SENT) {
        COUNT(lane, replies_unknown);
        return;
    }
    if (reply->error) {
        shutdown(daemon->fd, SHUT_RDWR); /* it can't serve; the supervisor hears of it as of a death */
        return;
    }
    if (!lane->init_answered) {
        lane->init_answered = true;
        amend_init(lane, reply);
        answer(lane, reply, reply + 1);
    }
    daemon->state = DAEMON_READY;
    lane->current = daemon;
    send_waiting(lane);
    tell(lane, EVENT_INIT_ANSWERED);
}

/*
 * The answer to a read of a daemon that shares an arena with the lane begins with a reference (arena.py says the
 * layout): the bytes follow it, or are in a buffer of the arena, which is free again when they have been written.
 */
static void answer_from_arena(struct lane *lane, struct daemon *daemon, struct fuse_out_header *reply) {
    const struct reference *reference = (void *)(reply + 1);
    const unsigned char *payload = (void *)(reference + 1);
    size_t follows = reply->len - sizeof *reply;
    bool is_whole = follows >= sizeof *reference && reference->cookie == daemon->arena->cookie;
    bool is_inline = is_whole && reference->buffer == ARENA_INLINE;
    uint32_t buffer = is_whole && !is_inline ? reference->buffer : 0;
    if (is_inline)
        is_whole = reference->length == follows - sizeof *reference;
    else
        is_whole = is_whole && buffer < ARENA_BUFFERS && reference->length <= lane->max_read;
    if (!is_whole) {
        COUNT(lane, replies_malformed);
        return answer_error(lane, reply->unique, EIO);
    }
    if (!is_inline)
        payload = (unsigned char *)daemon->arena + ARENA_BUFFERS_AT + (size_t)buffer * ARENA_BUFFER_BYTES;
    reply->len = sizeof *reply + reference->length;
    answer(lane, reply, payload);
    if (!is_inline)
        free_buffer(daemon, buffer);
}

/* A reply that nobody waits for any more. If it has a buffer of the arena, that is free again. */
static void drop_reply(struct lane *lane, struct daemon *daemon, const struct fuse_out_header *reply) {
    const struct reference *reference = (void *)(reply + 1);
    COUNT(lane, replies_unknown);
    if (daemon->arena && reply->error == 0 && reply->len == sizeof *reply + sizeof *reference &&
        reference->cookie == daemon->arena->cookie && reference->buffer < ARENA_BUFFERS)
        free_buffer(daemon, reference->buffer);
}

static void handle_reply(struct lane *lane, struct daemon *daemon, size_t length) {
    struct fuse_out_header *reply = (void *)lane->reply_buffer;
    if (length < sizeof *reply || reply->len != length) {
        COUNT(lane, replies_malformed);
        return;
    }
    if (length > (size_t)lane->max_read + REPLY_OVERHEAD) {
        COUNT(lane, replies_oversize);
        reply->len = sizeof *reply;
        reply->error = -EIO;
    }
    if (reply->unique == 0)
        return queue_notification(lane, reply);
    if (reply->unique & INTERRUPT_BIT)
        return; /* libfuse asks to be interrupted again: it has been told */
    if (reply->unique == lane->init_unique)
        return handle_init_reply(lane, daemon, reply);
    uint32_t opcode = kept_take(lane, reply->unique);
    if (!opcode)
        drop_reply(lane, daemon, reply);
    else if (opcode == FUSE_READ && daemon->arena && reply->error == 0)
        answer_from_arena(lane, daemon, reply);
    else
        answer(lane, reply, reply + 1);
    send_waiting(lane);
}

/* All that it had and has not answered waits for the next daemon, or goes to the current one (after a hand-over). */
static void daemon_lost(struct lane *lane, int slot) {
    struct daemon *daemon = lane->daemons[slot];
    COUNT(lane, daemons_lost);
    for (struct kept *kept = lane->sent.first, *next; kept; kept = next) {
        next = kept->next;
        if (kept->daemon_serial == daemon->serial)
            kept_move(lane, kept, 0);
    }
    lane->daemons[slot] = NULL;
    if (lane->current == daemon) {
        lane->current = NULL;
        lane->detached_at_ns = now_ns();
    }
    close(daemon->fd);
    if (daemon->arena)
        munmap(daemon->arena, ARENA_BYTES);
    free(daemon);
    send_waiting(lane);
    tell(lane, EVENT_DAEMON_LOST);
    pthread_cond_broadcast(&lane->changed);
}

/* Carry one reply of a daemon, or take note of its end. */
static void carry_reply(struct lane *lane, int slot) {
    struct daemon *daemon = lane->daemons[slot];
    size_t size = lane->max_read + REPLY_OVERHEAD;
    ssize_t length = recv(daemon->fd, lane->reply_buffer, size, MSG_TRUNC | MSG_DONTWAIT);
    /* ECONNRESET comes once, from a daemon that died with unread requests; its replies still follow */
    if (length < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET || errno == ENOMEM))
        return;
    pthread_mutex_lock(&lane->mutex);
    if (length > 0)
        handle_reply(lane, daemon, (size_t)length);
    else
        daemon_lost(lane, slot);
    pthread_mutex_unlock(&lane->mutex);
}

/* ---- Notifications ---- */

static void *notifier_loop(void *argument) {
    struct lane *lane = argument;
    pthread_mutex_lock(&lane->mutex);
    while (!atomic_load(&lane->stop)) {
        struct notification *notification = lane->notifications;
        if (!notification) {
            pthread_cond_wait(&lane->changed, &lane->mutex);
            continue;
        }
        lane->notifications = notification->next;
        if (!lane->notifications)
            lane->notifications_end = &lane->notifications;
        pthread_mutex_unlock(&lane->mutex);
        if (write(lane->fuse_fd, notification->message, notification->length) >= 0)
            COUNT(lane, notifications);
        else if (errno != ENOENT)
            COUNT(lane, notifications_refused);
        pthread_mutex_lock(&lane->mutex);
        lane->notification_bytes -= notification->length + sizeof *notification;
        free(notification);
    }
    pthread_mutex_unlock(&lane->mutex);
    return NULL;
}

/* ---- Deadlines and killed readers, at each tick ---- */

/* What a request gets without a daemon. A close must not fail: there is nothing that it could lose. */
static int failure_of(const struct kept *kept) {
    bool is_close = kept->opcode == FUSE_FLUSH || kept->opcode == FUSE_RELEASE || kept->opcode == FUSE_RELEASEDIR;
    return is_close ? 0 : EIO;
}

/* Requests that are too old altogether: daemons come and die, and none lives long enough to answer or to be absent. */
static void check_age(struct lane *lane, const struct list *list, uint64_t now) {
    uint64_t limit = lane->request_deadline_ns + 2 * lane->answer_deadline_ns;
    if (!lane->request_deadline_ns || !lane->answer_deadline_ns)
        return;
    for (struct kept *kept = list->first, *next; kept; kept = next) {
        next = kept->next;
        if (now > kept->came_ns + limit) {
            COUNT(lane, answered_outage);
            answer_kept(lane, kept->unique, failure_of(kept));
        }
    }
}

/* Requests whose deadline has passed. */
static void check_deadlines(struct lane *lane, uint64_t now) {
    uint64_t limit = lane->request_deadline_ns;
    for (struct kept *kept = lane->waiting.first, *next; kept && limit && !lane->current; kept = next) {
        next = kept->next;
        uint64_t since = kept->since_ns > lane->detached_at_ns ? kept->since_ns : lane->detached_at_ns;
        if (now > since + limit) {
            COUNT(lane, answered_outage);
            answer_kept(lane, kept->unique, failure_of(kept));
        }
    }
    limit = lane->answer_deadline_ns;
    struct kept *last = lane->sent.last, *kept = lane->sent.first;
    for (struct kept *next = NULL; kept && limit && lane->current; kept = next) {
        next = kept == last ? NULL : kept->next; /* what is sent again goes to the end of the list */
        if (now <= kept->since_ns + limit)
            continue;
        if (kept->sent_again) {
            COUNT(lane, answered_late);
            answer_kept(lane, kept->unique, failure_of(kept));
        } else { /* the reply may be lost: the daemon got no memory for its message */
            COUNT(lane, resent);
            kept->sent_again = true;
            send_kept(lane, kept);
        }
    }
}

/*
 * Readers that were killed without an INTERRUPT: after another signal (the kernel tells only the first), or in a read
 * with O_DIRECT (the kernel makes asynchronous requests of it, and waits for those uninterruptibly). A look into /proc
 * costs 20 us: few a tick, and each request the more seldom the more there are.
 */
static void answer_killed(struct lane *lane, const struct list *list, uint64_t now, int *checks) {
    uint64_t period_ns = TICK_NS * (1 + lane->kept_count / CHECKS_PER_TICK);
    for (struct kept *kept = list->first, *next; kept && *checks > 0; kept = next) {
        next = kept->next;
        bool is_suspect = kept->interrupted || kept->opcode == FUSE_READ;
        if (!is_suspect || now < kept->checked_ns + period_ns)
            continue;
        --*checks;
        kept->checked_ns = now;
        if (is_killed(kept->pid) || is_exiting(kept->pid)) {
            COUNT(lane, answered_killed);
            answer_kept(lane, kept->unique, EINTR);
        }
    }
}

static void tick(struct lane *lane, uint64_t now) {
    int checks = CHECKS_PER_TICK;
    pthread_mutex_lock(&lane->mutex);
    if (lane->kept_bytes >= lane->kept_limit_bytes)
        COUNT(lane, throttled);
    send_init(lane);
    send_waiting(lane);
    check_deadlines(lane, now);
    check_age(lane, &lane->waiting, now);
    check_age(lane, &lane->sent, now);
    answer_killed(lane, &lane->waiting, now, &checks);
    answer_killed(lane, &lane->sent, now, &checks);
    pthread_mutex_unlock(&lane->mutex);
}

/* ---- The carrier ---- */

/*
 * Fill in what to wait for: /dev/fuse, the wake-up, the daemons; return for how long. A full table leaves requests in
 * the kernel.
 */
static int fill_polls(struct lane *lane, struct pollfd polls[2 + MAX_DAEMONS]) {
    pthread_mutex_lock(&lane->mutex);
    bool has_room = lane->kept_bytes < lane->kept_limit_bytes;
    polls[0] = (struct pollfd){.fd = has_room ? lane->fuse_fd : -1, .events = POLLIN};
    polls[1] = (struct pollfd){.fd = lane->wake_fd, .events = POLLIN};
    for (int i = 0; i < MAX_DAEMONS; i++)
        polls[2 + i] = (struct pollfd){.fd = lane->daemons[i] ? lane->daemons[i]->fd : -1, .events = POLLIN};
    int wait_ms = lane->kept_count ? (int)(TICK_NS / 1000000) : -1;
    pthread_mutex_unlock(&lane->mutex);
    return wait_ms;
}

static void *carrier_loop(void *argument) {
    struct lane *lane = argument;
    struct pollfd polls[2 + MAX_DAEMONS];
    uint64_t next_tick_ns = 0, woken;
    bool mounted = true;
    /*
     * It works for microseconds, and both sides wait for it: so it goes before them (as root; else this fails, and it
     * is only slower). With two processors, 4 KiB reads at depth 32 became half as fast again.
     */
    setpriority(PRIO_PROCESS, (id_t)gettid(), CARRIER_NICE);
    while (!atomic_load(&lane->stop)) {
        int wait_ms = fill_polls(lane, polls);
        if (!mounted)
            polls[0].fd = -1;
        if (poll(polls, 2 + MAX_DAEMONS, wait_ms) < 0)
            continue;
        for (int i = 0; i < MAX_DAEMONS; i++)
            if (polls[2 + i].fd >= 0 && polls[2 + i].revents)
                carry_reply(lane, i);
        if (polls[0].fd >= 0 && polls[0].revents)
            mounted = carry_request(lane);
        if (polls[1].revents && read(lane->wake_fd, &woken, sizeof woken) < 0)
            continue;
        uint64_t now = now_ns();
        if (now >= next_tick_ns) {
            next_tick_ns = now + TICK_NS;
            tick(lane, now);
        }
    }
    return NULL;
}

/* ---- Life ---- */

static int start_thread(pthread_t *thread, void *(*loop)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the supervisor's main thread */
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    int error = pthread_create(thread, &attributes, loop, argument);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static struct lane *lane_new(int fuse_fd, uint32_t max_read) {
    struct lane *lane = calloc(1, sizeof *lane);
    if (!lane)
        return NULL;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&lane->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&lane->mutex, NULL);
    lane->notifications_end = &lane->notifications;
    lane->request_buffer = malloc(REQUEST_SIZE);
    lane->reply_pages = aligned_alloc(PAGE_SIZE, PAGE_SIZE + max_read / PAGE_SIZE * PAGE_SIZE + 2 * REPLY_OVERHEAD);
    lane->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    lane->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    lane->fuse_fd = fuse_fd;
    lane->max_read = max_read;
    lane->reply_buffer = lane->reply_pages + PAGE_SIZE - sizeof(struct fuse_out_header);
    if (!lane->request_buffer || !lane->reply_pages || lane->event_fd < 0 || lane->wake_fd < 0)
        abort(); /* at the start of the supervisor: nothing is mounted yet */
    return lane;
}

static void wake_carrier(struct lane *lane) {
    uint64_t one = 1;
    if (write(lane->wake_fd, &one, sizeof one) < 0) {
        /* it has been woken often enough */
    }
}

static int lane_start(struct lane *lane) {
    fcntl(lane->fuse_fd, F_SETFL, fcntl(lane->fuse_fd, F_GETFL) | O_NONBLOCK);
    int error = start_thread(&lane->carrier, carrier_loop, lane);
    if (error)
        return error;
    lane->started = true;
    if ((error = start_thread(&lane->notifier, notifier_loop, lane)))
        abort(); /* half a lane serves nobody */
    return 0;
}

/* Map a daemon's arena. Its size is checked, and sealed by who made it: reading it cannot fault. */
static struct arena *map_arena(int fd) {
    struct stat status;
    struct arena *arena;
    if (fstat(fd, &status) < 0 || (size_t)status.st_size != ARENA_BYTES)
        return NULL;
    arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (arena == MAP_FAILED)
        return NULL;
    if (!memcmp(arena->magic, ARENA_MAGIC, sizeof arena->magic) && arena->version == ARENA_VERSION &&
        arena->buffers == ARENA_BUFFERS && arena->buffer_bytes == ARENA_BUFFER_BYTES)
        return arena;
    munmap(arena, ARENA_BYTES);
    return NULL;
}

/* Takes the fd of the socket; that of the arena (-1: none) is the caller's to close. */
static int lane_attach(struct lane *lane, int fd, int arena_fd) {
    struct arena *arena = arena_fd >= 0 ? map_arena(arena_fd) : NULL;
    if (arena_fd >= 0 && !arena)
        return EINVAL;
    struct daemon *daemon = calloc(1, sizeof *daemon);
    int error = daemon ? EBUSY : ENOMEM;
    pthread_mutex_lock(&lane->mutex);
    for (int i = 0; daemon && i < MAX_DAEMONS; i++) {
        if (lane->daemons[i])
            continue;
        *daemon = (struct daemon){.arena = arena, .fd = fd, .serial = ++lane->last_serial, .state = DAEMON_NEW};
        lane->daemons[i] = daemon;
        COUNT(lane, daemons_attached);
        send_init(lane);
        error = 0;
        break;
    }
    pthread_mutex_unlock(&lane->mutex);
    wake_carrier(lane);
    if (error) {
        free(daemon);
        if (arena)
            munmap(arena, ARENA_BYTES);
    }
    return error;
}

static bool has_daemons(struct lane *lane) {
    bool found = false;
    for (int i = 0; i < MAX_DAEMONS; i++)
        found |= lane->daemons[i] != NULL;
    return found;
}

/* Take leave of all daemons: their replies that are here are used, what they have not answered waits. */
static void lane_detach(struct lane *lane) {
    pthread_mutex_lock(&lane->mutex);
    for (int i = 0; i < MAX_DAEMONS; i++)
        if (lane->daemons[i])
            shutdown(lane->daemons[i]->fd, SHUT_RDWR);
    while (lane->started && has_daemons(lane))
        pthread_cond_wait(&lane->changed, &lane->mutex);
    pthread_mutex_unlock(&lane->mutex);
}

static bool join_within_a_second(pthread_t thread) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

/* Ends the threads and closes /dev/fuse (which ends the mount, if there still is one). */
static void lane_close(struct lane *lane) {
    lane_detach(lane);
    pthread_mutex_lock(&lane->mutex);
    atomic_store(&lane->stop, true);
    pthread_cond_broadcast(&lane->changed);
    pthread_mutex_unlock(&lane->mutex);
    wake_carrier(lane);
    bool joined = true;
    if (lane->started) {
        pthread_join(lane->carrier, NULL);
        joined = join_within_a_second(lane->notifier);
    }
    close(lane->fuse_fd);
    close(lane->event_fd);
    close(lane->wake_fd);
    if (!joined)
        return; /* a notification hangs in the kernel: leave that thread what it uses */
    while (lane->waiting.first)
        kept_take(lane, lane->waiting.first->unique);
    for (struct slab *slab = lane->slabs, *next; slab; slab = next) {
        next = slab->next;
        free(slab);
    }
    for (struct notification *notification = lane->notifications, *next; notification; notification = next) {
        next = notification->next;
        free(notification);
    }
    free(lane->init);
    free(lane->request_buffer);
    free(lane->reply_pages);
    for (int i = 0; i < MAX_DAEMONS; i++)
        free(lane->daemons[i]); /* only if it never ran */
    pthread_mutex_destroy(&lane->mutex);
    pthread_cond_destroy(&lane->changed);
    free(lane);
}

/* ---- Python: what the supervisor sees (documented in _lane.pyi) ---- */

typedef struct {
    PyObject_HEAD struct lane *lane;
} LaneObject;

static struct lane *lane_of(PyObject *self) {
    struct lane *lane = ((LaneObject *)self)->lane;
    if (!lane)
        PyErr_SetString(PyExc_ValueError, "the lane is closed");
    return lane;
}

static PyObject *Lane_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"fuse_fd",          "max_read_bytes",    "max_background", "kept_limit_bytes",
                            "request_deadline_s", "answer_deadline_s", NULL};
    int fuse_fd;
    unsigned max_read = 131072, max_background = 0;
    unsigned long long kept_limit = 64 << 20;
    double request_deadline_s = 0, answer_deadline_s = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "i|$IIKdd", names, &fuse_fd, &max_read, &max_background,
                                     &kept_limit, &request_deadline_s, &answer_deadline_s))
        return NULL;
    if (max_read < 4096 || max_read > 1 << 20 || max_background > 65535 || request_deadline_s < 0 ||
        answer_deadline_s < 0)
        return PyErr_Format(PyExc_ValueError, "max_read_bytes is 4096 to 1048576, deadlines are not negative");
    LaneObject *self = (LaneObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (!(self->lane = lane_new(fuse_fd, max_read))) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->lane->max_background = max_background;
    self->lane->kept_limit_bytes = kept_limit;
    self->lane->request_deadline_ns = (uint64_t)(request_deadline_s * 1e9);
    self->lane->answer_deadline_ns = (uint64_t)(answer_deadline_s * 1e9);
    return (PyObject *)self;
}

static PyObject *Lane_close(PyObject *self, PyObject *unused) {
    (void)unused;
    struct lane *lane = ((LaneObject *)self)->lane;
    ((LaneObject *)self)->lane = NULL;
    if (lane) {
        Py_BEGIN_ALLOW_THREADS;
        lane_close(lane);
        Py_END_ALLOW_THREADS;
    }
    Py_RETURN_NONE;
}

static void Lane_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(Lane_close(self, NULL));
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *Lane_start(PyObject *self, PyObject *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    if (!lane)
        return NULL;
    if (lane->started)
        return PyErr_Format(PyExc_ValueError, "the lane runs");
    if ((errno = lane_start(lane)))
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *Lane_attach(PyObject *self, PyObject *arguments) {
    struct lane *lane = lane_of(self);
    int fd, arena_fd = -1;
    if (!lane || !PyArg_ParseTuple(arguments, "i|i", &fd, &arena_fd))
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS;
    error = lane_attach(lane, fd, arena_fd);
    Py_END_ALLOW_THREADS;
    if ((errno = error))
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *Lane_detach(PyObject *self, PyObject *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    if (!lane)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    lane_detach(lane);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *Lane_events(PyObject *self, PyObject *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    uint64_t count;
    if (!lane)
        return NULL;
    if (read(lane->event_fd, &count, sizeof count) < 0) {
        /* nothing new: the mask is 0 or will be told again */
    }
    return PyLong_FromUnsignedLong(atomic_exchange(&lane->events, 0));
}

static int put(PyObject *dictionary, const char *key, unsigned long long value) {
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    int error = number ? PyDict_SetItemString(dictionary, key, number) : -1;
    Py_XDECREF(number);
    return error;
}

static PyObject *Lane_statistics(PyObject *self, PyObject *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    PyObject *result = lane ? PyDict_New() : NULL, *kinds = result ? PyDict_New() : NULL;
    if (!kinds) {
        Py_XDECREF(result);
        return NULL;
    }
    int error = 0;
#define X(name) error |= put(result, #name, atomic_load(&lane->count.name));
    COUNTERS(X)
#undef X
    for (int opcode = 0; opcode < OPCODES; opcode++) {
        char name[16];
        snprintf(name, sizeof name, "%d", opcode);
        unsigned long long count = atomic_load(&lane->passed_on[opcode]);
        error |= count ? put(kinds, name, count) : 0;
    }
    pthread_mutex_lock(&lane->mutex);
    uint64_t kept = lane->kept_count, bytes = lane->kept_bytes;
    uint64_t notification_bytes = lane->notification_bytes;
    bool attached = lane->current != NULL;
    pthread_mutex_unlock(&lane->mutex);
    error |= put(result, "kept", kept) | put(result, "kept_bytes", bytes) | put(result, "attached", attached) |
             put(result, "notification_bytes", notification_bytes) |
             PyDict_SetItemString(result, "requests_by_opcode", kinds);
    Py_DECREF(kinds);
    if (error)
        Py_CLEAR(result);
    return result;
}

static PyObject *Lane_event_fd(PyObject *self, void *unused) {
    (void)unused;
    struct lane *lane = lane_of(self);
    return lane ? PyLong_FromLong(lane->event_fd) : NULL;
}

static PyMethodDef lane_methods[] = {
    {"start", Lane_start, METH_NOARGS, "Start to read requests; the file system must be mounted."},
    {"attach", Lane_attach, METH_VARARGS, "Take the lane's end of a new daemon's socket (and own it), and see its arena."},
    {"detach", Lane_detach, METH_NOARGS, "Shut all daemons' sockets; unanswered requests wait."},
    {"events", Lane_events, METH_NOARGS, "Return and clear the mask of EVENT_*."},
    {"statistics", Lane_statistics, METH_NOARGS, "Return the counters as a dict."},
    {"close", Lane_close, METH_NOARGS, "End the threads and close /dev/fuse."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef lane_properties[] = {
    {"event_fd", Lane_event_fd, NULL, "Readable when events() has something to tell.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot lane_slots[] = {
    {Py_tp_new, Lane_new},         {Py_tp_dealloc, Lane_dealloc},
    {Py_tp_methods, lane_methods}, {Py_tp_getset, lane_properties},
    {Py_tp_doc, "The owner of /dev/fuse: keeps requests and passes them to a daemon."},
    {0, NULL},
};

static PyType_Spec lane_spec = {"mount_helper._lane.Lane", sizeof(LaneObject), 0, Py_TPFLAGS_DEFAULT, lane_slots};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "mount_helper._lane", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__lane(void) {
    PyObject *result = PyModule_Create(&module), *type = result ? PyType_FromSpec(&lane_spec) : NULL;
    if (!type || PyModule_AddObjectRef(result, "Lane", type) ||
        PyModule_AddIntConstant(result, "EVENT_INIT_ANSWERED", EVENT_INIT_ANSWERED) ||
        PyModule_AddIntConstant(result, "EVENT_DAEMON_LOST", EVENT_DAEMON_LOST) ||
        PyModule_AddIntConstant(result, "EVENT_UNMOUNTED", EVENT_UNMOUNTED))
        Py_CLEAR(result);
    Py_XDECREF(type);
    PyObject *layout = result ? Py_BuildValue("(siiiIiiI)", ARENA_MAGIC, ARENA_VERSION, ARENA_BUFFERS, ARENA_BUFFER_BYTES,
                                              ARENA_INLINE, ARENA_STATES_AT, ARENA_BUFFERS_AT,
                                              (unsigned)sizeof(struct reference))
                              : NULL;
    if (result && (!layout || PyModule_AddObjectRef(result, "ARENA_LAYOUT", layout)))
        Py_CLEAR(result);
    Py_XDECREF(layout);
    return result;
}
