# Writes into the library which sources it is of: quant/native/library_file.py computes the same,
# and refuses a library that was compiled from others than the checkout has.
set(folder ${CMAKE_CURRENT_LIST_DIR})
file(GLOB_RECURSE names RELATIVE ${folder} CONFIGURE_DEPENDS ${folder}/*.cpp ${folder}/*.h)
list(SORT names)
set(lines "")
foreach(name IN LISTS names)
  file(SHA256 ${folder}/${name} hash)
  string(APPEND lines "${name} ${hash}\n")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${folder}/${name})
endforeach()
string(SHA256 digest "${lines}")
target_sources(edgelm_parts PRIVATE ${folder}/api/sources.cpp)
set_source_files_properties(${folder}/api/sources.cpp
  PROPERTIES COMPILE_DEFINITIONS "EDGELM_SOURCES=\"${digest}\"")
