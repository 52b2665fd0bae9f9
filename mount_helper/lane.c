/*
 * The lane: the owner of /dev/fuse.
 *
 * It stands between the kernel and the daemon. A request that the kernel writes is kept, and sent to the daemon over a
 * SOCK_SEQPACKET socket (one message a request, one a reply: libfuse takes such a socket for its device). The copy is
 * dropped when the reply has come. So a daemon may die at any moment: what it had not answered is still here, and the
 * next daemon gets it. Nobody who reads through the mount sees more than a delay.
 *
 *      kernel --read--> reader thread --send--> daemon            (or the table only, while there is no daemon)
 *      kernel <--write-- reply thread <--recv-- daemon            (one reply thread for each daemon attached)
 *      kernel <--write-- notifier thread <--queue-- reply thread  (invalidations)
 *                        clock thread: deadlines, killed readers; once a second
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
 * A daemon is lost when its socket is at its end, that is after all of its replies have been read from it.
 *
 * FUSE_INIT is kept for ever and is the first message to every daemon, because libfuse refuses all else before it. The
 * first reply goes to the kernel, later ones are dropped; a daemon becomes `current` (gets requests) with its INIT reply.
 *
 * Locks: one mutex for table, lists, and daemons. Nothing blocks under it: sends are MSG_DONTWAIT. The threads know
 * nothing of Python and never hold the GIL.
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
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HASH_SIZE 4096 /* buckets; uniques count up in steps of 2, so they spread evenly */
#define INLINE_SIZE 400 /* bytes: READ has 80, LOOKUP at most 296 */
#define SLAB_SIZE 64    /* kept requests allocated at a time */
#define MAX_WRITE (128 * 1024)
#define REQUEST_SIZE (MAX_WRITE + 64 * 1024) /* the kernel refuses less than max_write + 4096; xattrs have 64 KiB */
#define REPLY_OVERHEAD 4096
#define NOTIFICATION_LIMIT_BYTES (16 * 1024 * 1024)
#define CHECKS_PER_TICK 256 /* readers looked up in /proc a second */
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
    X(read_errors)                                                                                                     \
    X(interrupts)              /* INTERRUPT requests */                                                               \
    X(answered_killed)         /* answered here with EINTR: the reader was killed */                                  \
    X(answered_outage)         /* answered here with EIO: no daemon for request_deadline_s */                         \
    X(answered_late)           /* answered here with EIO: the daemon did not answer, twice */                         \
    X(reader_throttled)        /* kept requests reached their limit */

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
    uint64_t since_ns;      /* when it came, or was last sent */
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

enum daemon_state { DAEMON_NEW, DAEMON_INIT_SENT, DAEMON_READY, DAEMON_LOST };

/* One attached daemon, freed by the last of: its reply thread, the lane (`current`), a send that is under way. */
struct daemon {
    struct lane *lane;
    struct daemon *next; /* in lane.daemons */
    int fd;
    atomic_int references;
    uint64_t serial;
    enum daemon_state state; /* under lane.mutex */
    unsigned char *buffer;   /* of its reply thread */
};

struct notification {
    struct notification *next;
    size_t length;
    unsigned char message[];
};

struct lane {
    int fuse_fd, event_fd;
    uint32_t max_read, max_background;
    uint64_t request_deadline_ns, answer_deadline_ns; /* 0: none */
    uint64_t kept_limit_bytes;
    unsigned char *request_buffer;

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* room in the table, a notification, a daemon's end, stop */
    struct kept *buckets[HASH_SIZE];
    struct list waiting, sent;
    struct kept *free_list;
    struct slab *slabs;
    uint64_t kept_count;
    atomic_ullong kept_bytes; /* changed under the mutex, read by the reader without it */
    bool reader_waits;

    unsigned char *init; /* the kernel's INIT request */
    uint32_t init_length;
    uint64_t init_unique;
    bool init_answered;

    struct daemon *current; /* gets the requests */
    struct daemon *daemons; /* all whose reply thread runs */
    uint64_t last_serial, detached_at_ns;

    struct notification *notifications, **notifications_end;
    size_t notification_bytes;

    pthread_t reader, notifier, clock;
    bool started;
    atomic_bool stop, unmounted, reader_done;
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
    kept->since_ns = now_ns();
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

/* Take a request out of the table. True: it was there, and the caller is the one who answers it. */
static bool kept_take(struct lane *lane, uint64_t unique) {
    struct kept **link = bucket_of(lane, unique), *kept;
    while ((kept = *link) && kept->unique != unique)
        link = &kept->chain;
    if (!kept)
        return false;
    *link = kept->chain;
    list_remove(list_of(lane, kept), kept);
    lane->kept_count--;
    lane->kept_bytes -= kept_size(kept);
    if (kept->body != kept->inline_body)
        free(kept->body);
    kept->chain = lane->free_list;
    lane->free_list = kept;
    if (lane->reader_waits && lane->kept_bytes < lane->kept_limit_bytes)
        pthread_cond_broadcast(&lane->changed);
    return true;
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

/* Write a daemon's reply. ENOENT: the kernel does not wait for it any more. */
static void answer(struct lane *lane, const struct fuse_out_header *reply) {
    if (write(lane->fuse_fd, reply, reply->len) >= 0) {
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

/* Answer a kept request here, with an error; nothing if somebody else has answered it meanwhile. */
static bool answer_kept_error(struct lane *lane, uint64_t unique, int error) {
    pthread_mutex_lock(&lane->mutex);
    bool taken = kept_take(lane, unique);
    pthread_mutex_unlock(&lane->mutex);
    if (taken)
        answer_error(lane, unique, error);
    return taken;
}

/* ---- To the daemon ---- */

static void daemon_release(struct daemon *daemon) {
    if (atomic_fetch_sub(&daemon->references, 1) > 1)
        return;
    close(daemon->fd);
    free(daemon->buffer);
    free(daemon);
}

static struct daemon *daemon_hold(struct daemon *daemon) {
    if (daemon)
        atomic_fetch_add(&daemon->references, 1);
    return daemon;
}

enum sent { SENT, SENT_LATER, SENT_NEVER };

/* Never blocks: a daemon that does not read its socket must not hold up the lane. */
static enum sent daemon_send(struct daemon *daemon, const void *message, size_t length) {
    while (send(daemon->fd, message, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        if (errno == EMSGSIZE)
            return SENT_NEVER;
        if (errno != EINTR)
            return SENT_LATER; /* full, no memory; or it is dead, and its reply thread will find that out */
    }
    return SENT;
}

/* Send what waits to the current daemon, until its socket is full. Under the mutex. */
static void send_waiting(struct lane *lane) {
    struct daemon *daemon = lane->current;
    while (daemon && lane->waiting.first) {
        struct kept *kept = lane->waiting.first;
        uint64_t unique = kept->unique;
        enum sent sent = daemon_send(daemon, kept->body, kept->length);
        if (sent == SENT_LATER)
            return;
        if (sent == SENT) {
            if (kept->sent_before)
                COUNT(lane, resent);
            kept_move(lane, kept, daemon->serial);
            continue;
        }
        COUNT(lane, requests_oversize);
        if (kept_take(lane, unique))
            answer_error(lane, unique, EIO);
    }
}

/* INIT to a daemon that has not got it yet, if the kernel has sent it. Under the mutex. */
static void send_init(struct lane *lane) {
    for (struct daemon *daemon = lane->daemons; daemon && lane->init; daemon = daemon->next)
        if (daemon->state == DAEMON_NEW && daemon_send(daemon, lane->init, lane->init_length) == SENT)
            daemon->state = DAEMON_INIT_SENT;
}

/* ---- Requests: the reader thread ---- */

/* A message that the kernel expects no reply to: the daemon gets it, or nobody does. */
static void pass_unanswered(struct lane *lane, const struct fuse_in_header *request) {
    pthread_mutex_lock(&lane->mutex);
    struct daemon *daemon = daemon_hold(lane->current);
    pthread_mutex_unlock(&lane->mutex);
    if (!daemon || daemon_send(daemon, request, request->len) != SENT)
        COUNT(lane, unanswerable_dropped);
    if (daemon)
        daemon_release(daemon);
}

/* It was marked as sent before the send (its reply may be faster than the next line), and the socket was full. */
static void defer(struct lane *lane, uint64_t unique, uint64_t daemon_serial) {
    COUNT(lane, requests_deferred);
    pthread_mutex_lock(&lane->mutex);
    struct kept *kept = kept_find(lane, unique);
    if (kept && kept->daemon_serial == daemon_serial)
        kept_move(lane, kept, 0);
    pthread_mutex_unlock(&lane->mutex);
}

static void pass_on(struct lane *lane, const struct fuse_in_header *request) {
    pthread_mutex_lock(&lane->mutex);
    struct kept *kept = kept_add(lane, request);
    struct daemon *daemon = kept ? daemon_hold(lane->current) : NULL;
    if (daemon)
        kept_move(lane, kept, daemon->serial);
    pthread_mutex_unlock(&lane->mutex);
    if (!kept)
        answer_error(lane, request->unique, ENOMEM);
    if (!daemon)
        return;
    enum sent sent = daemon_send(daemon, request, request->len);
    if (sent == SENT_LATER)
        defer(lane, request->unique, daemon->serial);
    else if (sent == SENT_NEVER && answer_kept_error(lane, request->unique, EIO))
        COUNT(lane, requests_oversize);
    daemon_release(daemon);
}

static void keep_init(struct lane *lane, const struct fuse_in_header *request) {
    unsigned char *copy = malloc(request->len);
    if (!copy)
        return answer_error(lane, request->unique, ENOMEM);
    pthread_mutex_lock(&lane->mutex);
    lane->init = memcpy(copy, request, request->len);
    lane->init_length = request->len;
    lane->init_unique = request->unique;
    send_init(lane);
    pthread_mutex_unlock(&lane->mutex);
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
    pthread_mutex_lock(&lane->mutex);
    struct kept *kept = kept_find(lane, argument->unique);
    uint32_t pid = kept ? kept->pid : 0;
    bool with_daemon = kept && kept->daemon_serial;
    if (kept)
        kept->interrupted = true; /* the kernel tells it once: the clock looks whether a SIGKILL follows */
    pthread_mutex_unlock(&lane->mutex);
    if (pid && is_killed(pid)) {
        if (answer_kept_error(lane, argument->unique, EINTR))
            COUNT(lane, answered_killed);
    } else if (with_daemon) {
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

/* Leave further requests with the kernel while the table is full. */
static void wait_for_room(struct lane *lane) {
    pthread_mutex_lock(&lane->mutex);
    if (lane->kept_bytes >= lane->kept_limit_bytes)
        COUNT(lane, reader_throttled);
    lane->reader_waits = true;
    while (lane->kept_bytes >= lane->kept_limit_bytes && !atomic_load(&lane->stop))
        pthread_cond_wait(&lane->changed, &lane->mutex);
    lane->reader_waits = false;
    pthread_mutex_unlock(&lane->mutex);
}

static void *reader_loop(void *argument) {
    struct lane *lane = argument;
    const struct fuse_in_header *request = (const void *)lane->request_buffer;
    while (!atomic_load_explicit(&lane->stop, memory_order_relaxed)) {
        if (atomic_load_explicit(&lane->kept_bytes, memory_order_relaxed) >= lane->kept_limit_bytes)
            wait_for_room(lane);
        ssize_t length = read(lane->fuse_fd, lane->request_buffer, REQUEST_SIZE);
        if (length < 0 && (errno == ENODEV || errno == ECONNABORTED)) {
            kernel_unmounted(lane);
            break;
        }
        if (length < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
            continue; /* ENOENT: the request was taken back while it was read */
        if (length < (ssize_t)sizeof *request || request->len != (size_t)length) {
            COUNT(lane, read_errors);
            if (length >= 0)
                continue;
            kernel_unmounted(lane);
            break;
        }
        COUNT(lane, requests);
        atomic_fetch_add_explicit(&lane->passed_on[request->opcode % OPCODES], 1, memory_order_relaxed);
        dispatch(lane, request);
    }
    atomic_store(&lane->reader_done, true);
    return NULL;
}

/* ---- Replies: one thread for each daemon ---- */

static void queue_notification(struct lane *lane, const struct fuse_out_header *message) {
    struct notification *notification = NULL;
    pthread_mutex_lock(&lane->mutex);
    if (lane->notification_bytes + message->len + sizeof *notification <= NOTIFICATION_LIMIT_BYTES)
        notification = malloc(sizeof *notification + message->len);
    if (notification) {
        notification->next = NULL;
        notification->length = message->len;
        memcpy(notification->message, message, message->len);
        lane->notification_bytes += message->len + sizeof *notification;
        *lane->notifications_end = notification;
        lane->notifications_end = &notification->next;
        pthread_cond_broadcast(&lane->changed);
    }
    pthread_mutex_unlock(&lane->mutex);
    if (!notification)
        COUNT(lane, notifications_dropped);
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
        init->max_pages = (uint16_t)((lane->max_read + 4095) / 4096);
}

static void handle_init_reply(struct lane *lane, struct daemon *daemon, struct fuse_out_header *reply) {
    pthread_mutex_lock(&lane->mutex);
    bool expected = daemon->state == DAEMON_INIT_SENT;
    bool first = expected && !reply->error && !lane->init_answered;
    if (first)
        lane->init_answered = true;
    pthread_mutex_unlock(&lane->mutex);
    if (!expected) {
        COUNT(lane, replies_unknown);
        return;
    }
    if (first) {
        amend_init(lane, reply);
        answer(lane, reply);
    }
    if (reply->error) {
        shutdown(daemon->fd, SHUT_RDWR); /* it can't serve; the supervisor hears of it as of a death */
        return;
    }
    pthread_mutex_lock(&lane->mutex);
    daemon->state = DAEMON_READY;
    struct daemon *before = lane->current;
    lane->current = daemon_hold(daemon);
    send_waiting(lane);
    pthread_mutex_unlock(&lane->mutex);
    if (before)
        daemon_release(before);
    tell(lane, EVENT_INIT_ANSWERED);
}

static void handle_reply(struct lane *lane, struct daemon *daemon, size_t length) {
    struct fuse_out_header *reply = (void *)daemon->buffer;
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
    pthread_mutex_lock(&lane->mutex);
    bool taken = kept_take(lane, reply->unique);
    if (lane->waiting.first)
        send_waiting(lane);
    pthread_mutex_unlock(&lane->mutex);
    if (taken)
        answer(lane, reply);
    else
        COUNT(lane, replies_unknown);
}

/* All that it had and has not answered waits for the next daemon, or goes to the current one (after a hand-over). */
static void daemon_lost(struct lane *lane, struct daemon *daemon) {
    COUNT(lane, daemons_lost);
    pthread_mutex_lock(&lane->mutex);
    daemon->state = DAEMON_LOST;
    for (struct kept *kept = lane->sent.first, *next; kept; kept = next) {
        next = kept->next;
        if (kept->daemon_serial == daemon->serial)
            kept_move(lane, kept, 0);
    }
    bool was_current = lane->current == daemon;
    if (was_current) {
        lane->current = NULL;
        lane->detached_at_ns = now_ns();
    }
    send_waiting(lane);
    tell(lane, EVENT_DAEMON_LOST);
    struct daemon **link = &lane->daemons;
    while (*link != daemon)
        link = &(*link)->next;
    *link = daemon->next;
    pthread_cond_broadcast(&lane->changed);
    pthread_mutex_unlock(&lane->mutex); /* from here on the lane may be gone */
    if (was_current)
        daemon_release(daemon);
    daemon_release(daemon);
}

static void *reply_loop(void *argument) {
    struct daemon *daemon = argument;
    size_t size = daemon->lane->max_read + REPLY_OVERHEAD;
    for (;;) {
        ssize_t length = recv(daemon->fd, daemon->buffer, size, MSG_TRUNC);
        /* ECONNRESET comes once, from a daemon that died with unread requests; its replies still follow */
        if (length < 0 && (errno == EINTR || errno == ECONNRESET || errno == ENOBUFS || errno == ENOMEM))
            continue;
        if (length <= 0)
            break;
        handle_reply(daemon->lane, daemon, (size_t)length);
    }
    daemon_lost(daemon->lane, daemon);
    return NULL;
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

/* ---- Deadlines and killed readers: the clock thread ---- */

/* Requests whose deadline has passed. Under the mutex; writes to the kernel don't block. */
static void check_deadlines(struct lane *lane, uint64_t now) {
    uint64_t limit = lane->request_deadline_ns;
    for (struct kept *kept = lane->waiting.first, *next; kept && limit && !lane->current; kept = next) {
        next = kept->next;
        uint64_t since = kept->since_ns > lane->detached_at_ns ? kept->since_ns : lane->detached_at_ns;
        uint64_t unique = kept->unique;
        if (now > since + limit && kept_take(lane, unique)) {
            COUNT(lane, answered_outage);
            answer_error(lane, unique, EIO);
        }
    }
    limit = lane->answer_deadline_ns;
    struct kept *last = lane->sent.last, *kept = lane->sent.first;
    for (struct kept *next = NULL; kept && limit && lane->current; kept = next) {
        next = kept == last ? NULL : kept->next; /* what is sent again goes to the end of the list */
        uint64_t unique = kept->unique;
        if (now <= kept->since_ns + limit)
            continue;
        if (kept->sent_again && kept_take(lane, unique)) {
            COUNT(lane, answered_late);
            answer_error(lane, unique, EIO);
        } else if (daemon_send(lane->current, kept->body, kept->length) == SENT) {
            COUNT(lane, resent);
            kept->sent_again = true;
            kept_move(lane, kept, lane->current->serial);
        }
    }
}

struct suspect {
    uint64_t unique;
    uint32_t pid;
    bool interrupted;
};

/* Readers that may have been killed without an INTERRUPT: killed after another signal, or with asynchronous reads. */
static size_t find_suspects(const struct list *list, struct suspect *suspects, size_t count, uint64_t now) {
    for (const struct kept *kept = list->first; kept && count < CHECKS_PER_TICK; kept = kept->next)
        if (kept->interrupted || (kept->opcode == FUSE_READ && now > kept->since_ns + SECOND_NS))
            suspects[count++] = (struct suspect){kept->unique, kept->pid, kept->interrupted};
    return count;
}

static void *clock_loop(void *argument) {
    struct lane *lane = argument;
    struct suspect suspects[CHECKS_PER_TICK];
    while (!atomic_load(&lane->stop)) {
        uint64_t now = now_ns();
        pthread_mutex_lock(&lane->mutex);
        send_waiting(lane);
        send_init(lane);
        check_deadlines(lane, now);
        size_t count = find_suspects(&lane->waiting, suspects, 0, now);
        count = find_suspects(&lane->sent, suspects, count, now);
        pthread_mutex_unlock(&lane->mutex);
        for (size_t i = 0; i < count; i++)
            if ((suspects[i].interrupted && is_killed(suspects[i].pid)) || is_exiting(suspects[i].pid))
                if (answer_kept_error(lane, suspects[i].unique, EINTR))
                    COUNT(lane, answered_killed);
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += 1;
        pthread_mutex_lock(&lane->mutex);
        while (!atomic_load(&lane->stop) && pthread_cond_timedwait(&lane->changed, &lane->mutex, &until) != ETIMEDOUT)
            ;
        pthread_mutex_unlock(&lane->mutex);
    }
    return NULL;
}

/* ---- Life ---- */

/* Wakes a thread out of a blocking read; a signal of its own that nothing else uses. */
static int wake_signal(void) { return SIGRTMAX - 2; }

static void ignore_wake(int number) { (void)number; }

static int start_thread(pthread_t *thread, void *(*loop)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, wake_signal());
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the supervisor's main thread */
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    int error = pthread_create(thread, &attributes, loop, argument);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static struct lane *lane_new(int fuse_fd) {
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
    lane->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    lane->fuse_fd = fuse_fd;
    if (!lane->request_buffer || lane->event_fd < 0) {
        free(lane->request_buffer);
        free(lane);
        return NULL;
    }
    return lane;
}

static int lane_start(struct lane *lane) {
    struct sigaction action = {.sa_handler = ignore_wake}; /* no SA_RESTART: read returns EINTR */
    sigaction(wake_signal(), &action, NULL);
    int error = start_thread(&lane->reader, reader_loop, lane);
    if (error)
        return error;
    lane->started = true;
    if ((error = start_thread(&lane->notifier, notifier_loop, lane)) ||
        (error = start_thread(&lane->clock, clock_loop, lane)))
        abort(); /* half a lane serves nobody; there is no memory for a thread's stack */
    return 0;
}

static int lane_attach(struct lane *lane, int fd) {
    struct daemon *daemon = calloc(1, sizeof *daemon);
    if (!daemon || !(daemon->buffer = malloc(lane->max_read + REPLY_OVERHEAD))) {
        free(daemon);
        close(fd);
        return ENOMEM;
    }
    daemon->lane = lane;
    daemon->fd = fd;
    daemon->references = 1; /* the reply thread's */
    pthread_mutex_lock(&lane->mutex);
    daemon->serial = ++lane->last_serial;
    pthread_t thread;
    int error = start_thread(&thread, reply_loop, daemon);
    if (error) {
        pthread_mutex_unlock(&lane->mutex);
        daemon_release(daemon);
        return error;
    }
    pthread_detach(thread);
    daemon->next = lane->daemons;
    lane->daemons = daemon;
    COUNT(lane, daemons_attached);
    send_init(lane);
    pthread_mutex_unlock(&lane->mutex);
    return 0;
}

/* Take leave of all daemons: their replies that are here are used, what they have not answered waits. */
static void lane_detach(struct lane *lane) {
    pthread_mutex_lock(&lane->mutex);
    for (struct daemon *daemon = lane->daemons; daemon; daemon = daemon->next)
        shutdown(daemon->fd, SHUT_RDWR);
    while (lane->daemons)
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
    bool joined = true;
    if (lane->started) {
        while (!atomic_load(&lane->reader_done)) { /* again and again: a signal before the read would be lost */
            pthread_kill(lane->reader, wake_signal());
            usleep(1000);
        }
        pthread_join(lane->reader, NULL);
        pthread_join(lane->clock, NULL);
        joined = join_within_a_second(lane->notifier);
    }
    close(lane->fuse_fd);
    close(lane->event_fd);
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
    if (!(self->lane = lane_new(fuse_fd))) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->lane->max_read = max_read;
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

static PyObject *Lane_attach(PyObject *self, PyObject *argument) {
    struct lane *lane = lane_of(self);
    long fd = lane ? PyLong_AsLong(argument) : -1;
    if (!lane || (fd == -1 && PyErr_Occurred()))
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS;
    error = lane_attach(lane, (int)fd);
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
    {"attach", Lane_attach, METH_O, "Take the lane's end of a new daemon's socket (and own it)."},
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
    return result;
}
