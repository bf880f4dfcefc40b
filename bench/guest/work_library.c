// Integer work by libraries as Debian builds them: zlib, xz, Lua, SQLite.
#include <lzma.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <lua.h>
#include <lauxlib.h>
#include <lualib.h>
#include "work.h"

#define TEXT_SIZE (1U << 20)

struct buffers {
    size_t packed_size;
    char text[TEXT_SIZE];
    uint8_t packed[TEXT_SIZE + TEXT_SIZE / 8];
};

static void *text_prepare(void)
{
    struct buffers *buffers = malloc(sizeof(*buffers));
    if (buffers) {
        work_text(buffers->text, sizeof(buffers->text));
        memset(buffers->packed, 0, sizeof(buffers->packed));
    }
    return buffers;
}

// The count is bytes: one buffer, or a part of one.
static uint64_t xz_run(void *data, uint64_t count)
{
    struct buffers *buffers = data;
    lzma_ret status =
        lzma_easy_buffer_encode(6, LZMA_CHECK_CRC64, NULL, (uint8_t *)buffers->text, count,
                                buffers->packed, &buffers->packed_size, sizeof(buffers->packed));
    return status == LZMA_OK ? work_sum(WORK_SUM, buffers->packed, 4096) ^ buffers->packed_size
                             : WORK_FAILED;
}

static int deflate_once(struct buffers *buffers)
{
    uLongf size = sizeof(buffers->packed);
    int status = compress2(buffers->packed, &size, (const Bytef *)buffers->text, TEXT_SIZE, 6);
    buffers->packed_size = size;
    return status;
}

static uint64_t deflate_run(void *data, uint64_t count)
{
    struct buffers *buffers = data;
    for (uint64_t done = 0; done < count; done += TEXT_SIZE) {
        if (deflate_once(buffers) != Z_OK) {
            return WORK_FAILED;
        }
    }
    return work_sum(WORK_SUM, buffers->packed, 4096) ^ buffers->packed_size;
}

static void *inflate_prepare(void)
{
    struct buffers *buffers = text_prepare();
    return buffers && deflate_once(buffers) == Z_OK ? buffers : NULL;
}

static uint64_t inflate_run(void *data, uint64_t count)
{
    struct buffers *buffers = data;
    for (uint64_t done = 0; done < count; done += TEXT_SIZE) {
        uLongf size = TEXT_SIZE;
        if (uncompress((Bytef *)buffers->text, &size, buffers->packed, buffers->packed_size) !=
            Z_OK) {
            return WORK_FAILED;
        }
    }
    return work_sum(WORK_SUM, buffers->text, 4096) ^ buffers->packed_size;
}

// Calls, tables, closures and strings; `count` comes as the script's argument.
static const char lua_script[] =
    "local count = ...\n"
    "local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end\n"
    "local function queens(n)\n"
    "  local found, columns, up, down = 0, {}, {}, {}\n"
    "  local function place(row)\n"
    "    if row > n then found = found + 1 return end\n"
    "    for column = 1, n do\n"
    "      if not (columns[column] or up[row + column] or down[row - column + n]) then\n"
    "        columns[column], up[row + column], down[row - column + n] = true, true, true\n"
    "        place(row + 1)\n"
    "        columns[column], up[row + column], down[row - column + n] = nil, nil, nil\n"
    "      end\n"
    "    end\n"
    "  end\n"
    "  place(1)\n"
    "  return found\n"
    "end\n"
    "local total = 0\n"
    "for round = 1, count do\n"
    "  local words = {}\n"
    "  for i = 1, 300 do words[#words + 1] = ('%d:%x'):format(i * round, i) end\n"
    "  table.sort(words)\n"
    "  local text = table.concat(words, ' ')\n"
    "  for number in text:gmatch('(%d+):') do total = total + tonumber(number) % 7 end\n"
    "  total = total + fib(16) + queens(6)\n"
    "end\n"
    "return total\n";

static uint64_t lua_run(void *data, uint64_t count)
{
    lua_State *lua = luaL_newstate();
    if (!lua) {
        return WORK_FAILED;
    }
    luaL_openlibs(lua);
    if (luaL_loadstring(lua, lua_script) != LUA_OK) {
        return WORK_FAILED;
    }
    lua_pushinteger(lua, (lua_Integer)count);
    if (lua_pcall(lua, 1, 1, 0) != LUA_OK) {
        return WORK_FAILED;
    }
    return (uint64_t)lua_tointeger(lua, -1);
}

static void *sqlite_prepare(void)
{
    sqlite3 *database = NULL;
    if (sqlite3_open(":memory:", &database) != SQLITE_OK) {
        return NULL;
    }
    const char *script =
        "CREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT, town INTEGER);"
        "CREATE TABLE towns(id INTEGER PRIMARY KEY, name TEXT);"
        "CREATE INDEX by_name ON people(name);"
        "INSERT INTO towns WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 "
        "FROM n WHERE i < 100) SELECT i, 'town ' || (i * 7919 % 1000) FROM n;";
    return sqlite3_exec(database, script, NULL, NULL, NULL) == SQLITE_OK ? database : NULL;
}

static int sqlite_insert(sqlite3 *database, uint64_t count)
{
    sqlite3_stmt *insert = NULL;
    uint64_t random = 3;
    if (sqlite3_prepare_v2(database, "INSERT INTO people(name, town) VALUES(?, ?)", -1, &insert,
                           NULL) != SQLITE_OK) {
        return -1;
    }
    for (uint64_t i = 0; i < count; i++) {
        char name[32];
        sqlite3_snprintf(sizeof(name), name, "name %llu", work_random(&random) % 100000);
        sqlite3_bind_text(insert, 1, name, -1, SQLITE_TRANSIENT);
        sqlite3_bind_int64(insert, 2, (sqlite3_int64)(1 + work_random(&random) % 100));
        if (sqlite3_step(insert) != SQLITE_DONE || sqlite3_reset(insert) != SQLITE_OK) {
            return -1;
        }
    }
    return sqlite3_finalize(insert);
}

static int add_text(void *sum, int count, char **values, char **names)
{
    uint64_t *total = sum;
    for (int i = 0; i < count; i++) {
        *total = values[i] ? work_sum(*total, values[i], strlen(values[i])) : *total;
    }
    return 0;
}

// The count is rows: inserted with an index, joined, grouped, changed, looked up.
static uint64_t sqlite_run(void *data, uint64_t count)
{
    static const char queries[] =
        "COMMIT;"
        "SELECT t.name, count(*), max(p.name), sum(length(p.name)) FROM people p "
        "JOIN towns t ON t.id = p.town GROUP BY t.name ORDER BY 2 DESC, 1;"
        "UPDATE people SET name = 'x' || name WHERE town % 10 = 3;"
        "SELECT count(DISTINCT name), min(name), sum(town * id % 17) FROM people;"
        "SELECT p.name, count(*) FROM people p WHERE p.name LIKE 'name 77%' GROUP BY p.name;"
        "DELETE FROM people WHERE town > 50;"
        "SELECT count(*), sum(id) FROM people;";
    sqlite3 *database = data;
    uint64_t sum = WORK_SUM;
    if (sqlite3_exec(database, "BEGIN", NULL, NULL, NULL) != SQLITE_OK ||
        sqlite_insert(database, count) != SQLITE_OK ||
        sqlite3_exec(database, queries, add_text, &sum, NULL) != SQLITE_OK) {
        return WORK_FAILED;
    }
    return sum;
}

const struct work_row work_library_rows[] = {
    {"integer", "xz", "byte", 512U << 10, text_prepare, xz_run},
    {"integer", "deflate", "byte", 4 * TEXT_SIZE, text_prepare, deflate_run},
    {"integer", "inflate", "byte", 32 * TEXT_SIZE, inflate_prepare, inflate_run},
    {"integer", "lua", "round", 100, NULL, lua_run},
    {"integer", "sqlite", "row", 20000, sqlite_prepare, sqlite_run},
    {NULL, NULL, NULL, 0, NULL, NULL},
};
