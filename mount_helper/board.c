/*
 * The daemon's side of the board, for Python (documented in _lane.pyi). What it may do, and in which order, says board.h.
 *
 * One daemon at a time writes on a board. All calls are made by one thread and hold the GIL: they take well under a
 * microsecond, but empty_class and drain.
 */
#include "module.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "board.h"

struct owned_segment {
    uint64_t device, inode;
};

typedef struct {
    PyObject_HEAD struct board *board;
    int fd;
    struct owned_segment segments[BOARD_CLASSES]; /* the files that this daemon writes to */
} BoardObject;

struct board *board_map(int fd, bool is_new) {
    struct stat status;
    if (fstat(fd, &status) < 0 || (size_t)status.st_size != BOARD_BYTES) {
        errno = EINVAL;
        return NULL;
    }
    struct board *board = mmap(NULL, BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (board == MAP_FAILED)
        return NULL;
    if (is_new) {
        memcpy(board->magic, BOARD_MAGIC, sizeof board->magic);
        board->version = BOARD_VERSION;
        board->header_bytes = offsetof(struct board, counters);
        board->board_bytes = BOARD_BYTES;
    }
    if (board_is_ours(board))
        return board;
    munmap(board, BOARD_BYTES);
    errno = EINVAL;
    return NULL;
}

static PyObject *Board_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"fd", "is_new", NULL};
    int fd, is_new = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "i|$p", names, &fd, &is_new))
        return NULL;
    struct board *board = board_map(fd, is_new);
    if (!board)
        return PyErr_Format(PyExc_ValueError, "this is no board of version %d", BOARD_VERSION);
    BoardObject *self = (BoardObject *)type->tp_alloc(type, 0);
    if (!self) {
        munmap(board, BOARD_BYTES);
        return NULL;
    }
    self->board = board;
    self->fd = fd;
    return (PyObject *)self;
}

static void Board_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    munmap(((BoardObject *)self)->board, BOARD_BYTES);
    type->tp_free(self);
    Py_DECREF(type);
}

static struct board *board_of(PyObject *self) {
    return ((BoardObject *)self)->board;
}

/* Numbers of a call with METH_FASTCALL; false with an exception set. */
static bool numbers(PyObject *const *arguments, Py_ssize_t count, Py_ssize_t wanted, uint64_t *result) {
    if (count != wanted) {
        PyErr_Format(PyExc_TypeError, "%zd arguments wanted, %zd given", wanted, count);
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        result[i] = PyLong_AsUnsignedLongLong(arguments[i]);
        if (result[i] == (uint64_t)-1 && PyErr_Occurred())
            return false;
    }
    return true;
}

/* The view of an image by its number; false if it is not valid, or none. */
static bool view_of(struct board *board, uint64_t number, struct board_view *view) {
    if (number >= BOARD_IMAGES)
        return false;
    uint64_t inode = atomic_load_explicit(&board->images[number].inode, memory_order_relaxed);
    return board_find_image(board, inode, view) && view->number == number;
}

/* Whether the lane reads the slots of a class from the file that we write them to. */
static bool is_adopted(BoardObject *self, uint32_t class) {
    struct board_segment *segment = &self->board->segments[class];
    const struct owned_segment *own = &self->segments[class];
    return own->inode && atomic_load_explicit(&segment->inode, memory_order_acquire) == own->inode &&
           atomic_load_explicit(&segment->device, memory_order_acquire) == own->device;
}

static PyObject *Board_publish(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    struct board *board = board_of(self);
    uint64_t place[2], number;
    char *id;
    Py_ssize_t id_bytes;
    if (count != 4)
        return PyErr_Format(PyExc_TypeError, "publish(inode, index, chunk_id, slot)");
    if (!numbers(arguments, 2, 2, place) || PyBytes_AsStringAndSize(arguments[2], &id, &id_bytes) < 0 ||
        !numbers(arguments + 3, 1, 1, &number))
        return NULL;
    if (id_bytes < 16)
        return PyErr_Format(PyExc_ValueError, "a chunk id has 32 bytes");
    struct board_view view;
    struct board_tag tag = board_tag_of((unsigned char *)id);
    struct board_slot *slot = number <= UINT32_MAX ? board_slot(board, (uint32_t)number) : NULL;
    if (!slot || !is_adopted((BoardObject *)self, (uint32_t)number >> BOARD_INDEX_BITS))
        Py_RETURN_FALSE;
    if (!board_holds(slot, tag)) {
        if (atomic_load_explicit(&slot->tag[0], memory_order_relaxed) ||
            atomic_load_explicit(&slot->tag[1], memory_order_relaxed))
            Py_RETURN_FALSE; /* the board says that something else is there: then nobody is sent there */
        board_fill(slot, tag);
    }
    struct board_chunk *chunk = board_find_image(board, place[0], &view) ? board_chunk(board, &view, place[1]) : NULL;
    if (!chunk)
        Py_RETURN_FALSE;
    atomic_store_explicit(&chunk->tag[0], tag.word[0], memory_order_release);
    atomic_store_explicit(&chunk->tag[1], tag.word[1], memory_order_release);
    atomic_store_explicit(&chunk->hint, (uint32_t)number + 1, memory_order_release);
    Py_RETURN_TRUE;
}

static PyObject *Board_publish_zero(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    struct board *board = board_of(self);
    uint64_t place[2];
    struct board_view view;
    if (!numbers(arguments, count, 2, place))
        return NULL;
    struct board_chunk *chunk = board_find_image(board, place[0], &view) ? board_chunk(board, &view, place[1]) : NULL;
    if (!chunk)
        Py_RETURN_FALSE;
    atomic_store_explicit(&chunk->tag[0], BOARD_ZERO_TAG, memory_order_release);
    atomic_store_explicit(&chunk->tag[1], BOARD_ZERO_TAG, memory_order_release);
    Py_RETURN_TRUE;
}

static PyObject *Board_empty(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    uint64_t number;
    if (!numbers(arguments, count, 1, &number))
        return NULL;
    struct board_slot *slot = number <= UINT32_MAX ? board_slot(board_of(self), (uint32_t)number) : NULL;
    if (slot)
        board_empty(slot);
    Py_RETURN_NONE;
}

static PyObject *Board_holds(PyObject *self, PyObject *argument) {
    uint64_t number;
    if (!numbers(&argument, 1, 1, &number))
        return NULL;
    struct board_slot *slot = number <= UINT32_MAX ? board_slot(board_of(self), (uint32_t)number) : NULL;
    return PyBool_FromLong(slot && (atomic_load(&slot->tag[0]) || atomic_load(&slot->tag[1])));
}

/* Empty the slots of a class but those whose bit is set. Only the pages that were ever written are looked at. */
static PyObject *Board_empty_class(PyObject *self, PyObject *arguments) {
    struct board *board = board_of(self);
    unsigned class;
    Py_buffer keep = {0};
    if (!PyArg_ParseTuple(arguments, "Iy*", &class, &keep))
        return NULL;
    if (class >= BOARD_CLASSES) {
        PyBuffer_Release(&keep);
        return PyErr_Format(PyExc_ValueError, "there are %d classes", BOARD_CLASSES);
    }
    struct board_slot *slots = board->slots[class];
    off_t base = (char *)slots - (char *)board, end = base + (off_t)sizeof board->slots[class];
    const unsigned char *bits = keep.buf;
    int fd = ((BoardObject *)self)->fd;
    for (off_t at = base; at < end;) {
        off_t data = lseek(fd, at, SEEK_DATA);
        if (data < 0 || data >= end)
            break;
        off_t hole = lseek(fd, data, SEEK_HOLE);
        size_t first = (size_t)(data - base) / sizeof *slots;
        size_t last = (size_t)((hole < end ? hole : end) - base + (off_t)sizeof *slots - 1) / sizeof *slots;
        for (size_t i = first; i < last && i < BOARD_CLASS_SLOTS; i++)
            if (i / 8 >= (size_t)keep.len || !(bits[i / 8] >> (i % 8) & 1))
                board_empty(&slots[i]);
        at = hole < 0 ? end : hole;
    }
    PyBuffer_Release(&keep);
    Py_RETURN_NONE;
}

static PyObject *Board_own_segment(PyObject *self, PyObject *arguments) {
    unsigned class;
    unsigned long long device, inode;
    if (!PyArg_ParseTuple(arguments, "IKK", &class, &device, &inode))
        return NULL;
    if (class >= BOARD_CLASSES)
        return PyErr_Format(PyExc_ValueError, "there are %d classes", BOARD_CLASSES);
    ((BoardObject *)self)->segments[class] = (struct owned_segment){device, inode};
    Py_RETURN_NONE;
}

static PyObject *Board_is_adopted(PyObject *self, PyObject *argument) {
    uint64_t class;
    if (!numbers(&argument, 1, 1, &class))
        return NULL;
    return PyBool_FromLong(class < BOARD_CLASSES && is_adopted((BoardObject *)self, (uint32_t)class));
}

/* ---- Images ---- */

static PyObject *Board_bucket(PyObject *self, PyObject *argument) {
    (void)self;
    uint64_t inode;
    if (!numbers(&argument, 1, 1, &inode))
        return NULL;
    return PyLong_FromUnsignedLong(board_bucket(inode) * BOARD_WAYS);
}

static void unset_image(struct board_image *entry) {
    unsigned generation = atomic_load_explicit(&entry->generation, memory_order_relaxed);
    if (generation & 1)
        atomic_store_explicit(&entry->generation, generation + 1, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst); /* nobody believes the entry from here on */
}

/* Make a table's memory all zeros, and free. */
static int clear_table(BoardObject *owner, uint64_t at, uint64_t size) {
    off_t position = (off_t)(offsetof(struct board, tables) + at);
    return size ? fallocate(owner->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, position, (off_t)size) : 0;
}

static PyObject *Board_unset_image(PyObject *self, PyObject *argument) {
    BoardObject *owner = (BoardObject *)self;
    uint64_t number;
    if (!numbers(&argument, 1, 1, &number))
        return NULL;
    if (number >= BOARD_IMAGES)
        return PyErr_Format(PyExc_ValueError, "there are %d images", BOARD_IMAGES);
    struct board_image *entry = &owner->board->images[number];
    unset_image(entry);
    uint64_t at = atomic_load(&entry->table_at), size = atomic_load(&entry->table_bytes);
    if (clear_table(owner, at, size) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* The table's memory is cleared again: a daemon may have died between its unset of another image and the clearing. */
static PyObject *Board_set_image(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    struct board *board = board_of(self);
    uint64_t of[6]; /* number, inode, size_bytes, chunk_shift, table_at, table_bytes */
    if (!numbers(arguments, count, 6, of))
        return NULL;
    if (of[0] >= BOARD_IMAGES || board_bucket(of[1]) != of[0] / BOARD_WAYS || !of[1] || of[3] < 12 || of[3] > 22 ||
        of[4] > BOARD_TABLES_BYTES || of[5] > BOARD_TABLES_BYTES - of[4])
        return PyErr_Format(PyExc_ValueError, "this cannot be an image's entry");
    struct board_image *entry = &board->images[of[0]];
    unset_image(entry);
    if (clear_table((BoardObject *)self, of[4], of[5]) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    atomic_store_explicit(&entry->inode, of[1], memory_order_relaxed);
    atomic_store_explicit(&entry->size_bytes, of[2], memory_order_relaxed);
    atomic_store_explicit(&entry->chunk_shift, (unsigned)of[3], memory_order_relaxed);
    atomic_store_explicit(&entry->table_at, of[4], memory_order_relaxed);
    atomic_store_explicit(&entry->table_bytes, of[5], memory_order_relaxed);
    unsigned generation = atomic_load_explicit(&entry->generation, memory_order_relaxed);
    atomic_store_explicit(&entry->generation, generation + 1, memory_order_release);
    Py_RETURN_NONE;
}

static PyObject *Board_hold_image(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    uint64_t of[2]; /* number, holds */
    if (!numbers(arguments, count, 2, of))
        return NULL;
    if (of[0] >= BOARD_IMAGES)
        return PyErr_Format(PyExc_ValueError, "there is no such entry");
    atomic_store_explicit(&board_of(self)->images[of[0]].holds, of[1] != 0, memory_order_relaxed);
    Py_RETURN_NONE;
}

static PyObject *Board_images(PyObject *self, PyObject *unused) {
    (void)unused;
    struct board *board = board_of(self);
    PyObject *list = PyList_New(0);
    for (uint32_t number = 0; list && number < BOARD_IMAGES; number++) {
        struct board_view view;
        if (!atomic_load(&board->images[number].inode) || !view_of(board, number, &view))
            continue;
        PyObject *row = Py_BuildValue("(IKKIKK)", number, (unsigned long long)atomic_load(&view.entry->inode),
                                      (unsigned long long)view.size_bytes, view.chunk_shift,
                                      (unsigned long long)view.table_at, (unsigned long long)view.table_bytes);
        if (!row || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *Board_generation(PyObject *self, PyObject *argument) {
    uint64_t number;
    if (!numbers(&argument, 1, 1, &number))
        return NULL;
    if (number >= BOARD_IMAGES)
        return PyErr_Format(PyExc_ValueError, "there are %d images", BOARD_IMAGES);
    return PyLong_FromUnsignedLong(atomic_load(&board_of(self)->images[number].generation));
}

/* ---- What the lane tells ---- */

struct slots {
    uint32_t *number;
    size_t count, room;
};

static bool slots_add(struct slots *slots, uint32_t number) {
    if (slots->count == slots->room) {
        size_t room = slots->room ? 2 * slots->room : 1024;
        uint32_t *grown = realloc(slots->number, room * sizeof *grown);
        if (!grown)
            return false;
        slots->number = grown;
        slots->room = room;
    }
    slots->number[slots->count++] = number;
    return true;
}

/* The slots that a read of the lane's was answered from, as their hints say now. */
static bool slots_of(struct board *board, const struct board_access *access, struct slots *slots) {
    struct board_view view;
    if (!access->by_lane || !access->length || !board_find_image(board, access->inode, &view))
        return true;
    uint64_t last = (access->offset + access->length - 1) >> view.chunk_shift;
    for (uint64_t index = access->offset >> view.chunk_shift; index <= last; index++) {
        struct board_chunk *chunk = board_chunk(board, &view, index);
        uint32_t hint = chunk ? atomic_load_explicit(&chunk->hint, memory_order_relaxed) : 0;
        if (hint && !slots_add(slots, hint - 1))
            return false;
    }
    return true;
}

static PyObject *Board_drain(PyObject *self, PyObject *argument) {
    struct board *board = board_of(self);
    struct board_ring *ring = &board->ring;
    uint64_t most;
    if (!numbers(&argument, 1, 1, &most))
        return NULL;
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed), end = tail;
    while (end - tail < most && end - tail < BOARD_RING_RECORDS &&
           atomic_load_explicit(&ring->records[end % BOARD_RING_RECORDS].sequence, memory_order_acquire) == end + 1)
        end++;
    PyObject *records = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)((end - tail) * sizeof(struct board_access)));
    if (!records)
        return NULL;
    struct board_access *copy = (void *)PyBytes_AS_STRING(records);
    struct slots slots = {0};
    bool is_done = true;
    for (uint64_t at = tail; at < end; at++, copy++) {
        memcpy(copy, &ring->records[at % BOARD_RING_RECORDS], sizeof *copy);
        is_done = is_done && slots_of(board, copy, &slots);
    }
    atomic_store_explicit(&ring->tail, end, memory_order_release);
    PyObject *result = NULL;
    if (is_done)
        result = Py_BuildValue("(Ny#)", records, slots.count ? (char *)slots.number : "", (Py_ssize_t)(slots.count * sizeof(uint32_t)));
    else {
        Py_DECREF(records);
        PyErr_NoMemory();
    }
    free(slots.number);
    return result;
}

static PyObject *Board_counters(PyObject *self, PyObject *unused) {
    (void)unused;
    return board_counters_dict(board_of(self));
}

static PyObject *Board_beat(PyObject *self, PyObject *unused) {
    (void)unused;
    atomic_fetch_add_explicit(&board_of(self)->beats, 1, memory_order_relaxed);
    Py_RETURN_NONE;
}

/* Give our view of the board's memory up; it stays on the board, and comes back page by page when it is used. */
static PyObject *Board_forget_pages(PyObject *self, PyObject *unused) {
    (void)unused;
    struct board *board = board_of(self);
    size_t from = offsetof(struct board, slots);
    if (madvise((char *)board + from, BOARD_BYTES - from, MADV_DONTNEED) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyMethodDef board_methods[] = {
    {"publish", (PyCFunction)(void (*)(void))Board_publish, METH_FASTCALL, "Say that a slot holds a chunk of an image."},
    {"publish_zero", (PyCFunction)(void (*)(void))Board_publish_zero, METH_FASTCALL, "Say that a chunk is all zeros."},
    {"empty", (PyCFunction)(void (*)(void))Board_empty, METH_FASTCALL, "Say that a slot's bytes may change from now on."},
    {"holds", Board_holds, METH_O, "Whether a slot is said to hold a chunk."},
    {"empty_class", Board_empty_class, METH_VARARGS, "Empty the slots of a class but those of a bitmap."},
    {"own_segment", Board_own_segment, METH_VARARGS, "Say which file the slots of a class are written to."},
    {"is_adopted", Board_is_adopted, METH_O, "Whether the lane reads a class from the same file."},
    {"bucket", Board_bucket, METH_O, "The first of the numbers that an inode's image can have."},
    {"set_image", (PyCFunction)(void (*)(void))Board_set_image, METH_FASTCALL, "Make an image's entry valid."},
    {"hold_image", (PyCFunction)(void (*)(void))Board_hold_image, METH_FASTCALL, "Say whether an image's readers wait."},
    {"unset_image", Board_unset_image, METH_O, "Make an image's entry invalid, and its table's memory free."},
    {"images", Board_images, METH_NOARGS, "The valid entries."},
    {"generation", Board_generation, METH_O, "The generation of an entry: odd while it is valid."},
    {"drain", Board_drain, METH_O, "Take accesses from the ring, and the slots of those that the lane answered."},
    {"counters", Board_counters, METH_NOARGS, "What the lane has counted."},
    {"beat", Board_beat, METH_NOARGS, "Say that the event loop runs."},
    {"forget_pages", Board_forget_pages, METH_NOARGS, "Take less memory, for now."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot board_slots[] = {
    {Py_tp_new, Board_new},
    {Py_tp_dealloc, Board_dealloc},
    {Py_tp_methods, board_methods},
    {Py_tp_doc, "Memory that the lane and the daemons of a mount share; the daemon's side of it."},
    {0, NULL},
};

PyType_Spec board_spec = {"mount_helper._lane.Board", sizeof(BoardObject), 0, Py_TPFLAGS_DEFAULT, board_slots};

/* ---- Both sides ---- */

PyObject *board_counters_dict(struct board *board) {
    static const char *names[] = {
#define X(name) #name,
        BOARD_COUNTERS(X)
#undef X
    };
    unsigned long long sums[COUNTERS] = {0}, latencies[BOARD_LATENCIES] = {0};
    for (int thread = 0; thread < BOARD_THREADS; thread++) {
        for (int i = 0; i < COUNTERS; i++)
            sums[i] += atomic_load_explicit(&board->counters[thread].value[i], memory_order_relaxed);
        for (int i = 0; i < BOARD_LATENCIES; i++)
            latencies[i] += atomic_load_explicit(&board->counters[thread].latency[i], memory_order_relaxed);
    }
    PyObject *result = PyDict_New(), *list = result ? PyList_New(BOARD_LATENCIES) : NULL;
    int error = list ? 0 : -1;
    for (int i = 0; !error && i < COUNTERS; i++)
        error = put(result, names[i], sums[i]);
    for (int i = 0; !error && i < BOARD_LATENCIES; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(latencies[i]);
        error = number ? PyList_SetItem(list, i, number) : -1;
    }
    if (!error)
        error = PyDict_SetItemString(result, "latencies", list);
    Py_XDECREF(list);
    if (error)
        Py_CLEAR(result);
    return result;
}

/* The layout, for Python: sizes that it needs, and the fields of an access as (name, offset, bytes). */
PyObject *board_layout(void) {
#define FIELD(name) #name, (int)offsetof(struct board_access, name), (int)sizeof(((struct board_access *)0)->name)
    return Py_BuildValue("{s:K,s:i,s:i,s:i,s:i,s:K,s:i,s:i,s:((sii)(sii)(sii)(sii)(sii)(sii)(sii))}", "board_bytes",
                         (unsigned long long)BOARD_BYTES, "classes", BOARD_CLASSES, "class_slots", BOARD_CLASS_SLOTS,
                         "ways", BOARD_WAYS, "chunk_entry_bytes", (int)sizeof(struct board_chunk), "tables_bytes",
                         (unsigned long long)BOARD_TABLES_BYTES, "ring_records", (int)BOARD_RING_RECORDS,
                         "access_bytes", (int)sizeof(struct board_access), "access_fields", FIELD(sequence),
                         FIELD(at_ns), FIELD(inode), FIELD(offset), FIELD(length), FIELD(pid), FIELD(by_lane));
#undef FIELD
}
