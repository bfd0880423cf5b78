# Refuses a compiler that cannot compile the core, before minutes are spent on it. As a script:
#   cmake -DCMAKE_CXX_COMPILER_ID=GNU -DCMAKE_CXX_COMPILER_VERSION=11.4 -P cmake/Compiler.cmake
set(remedy "set CXX to one of them (CXX=g++-12 pip install ., CXX=clang++ pip install .), or install a wheel, which needs no compiler")
if(CMAKE_CXX_COMPILER_ID STREQUAL "MSVC")
  message(FATAL_ERROR "CXX: expected GCC >= 12 or Clang >= 16, got MSVC ${CMAKE_CXX_COMPILER_VERSION}: the core is "
    "written with the vector types of GCC and Clang. Use Clang in Visual Studio (cmake -T ClangCL, not tested), or "
    "Linux in WSL.")
elseif(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(needed 12)
elseif(CMAKE_CXX_COMPILER_ID STREQUAL "AppleClang") # its 15 is LLVM's 16
  set(needed 15)
elseif(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  set(needed 16)
else()
  message(FATAL_ERROR "CXX: expected GCC >= 12 or Clang >= 16, got ${CMAKE_CXX_COMPILER_ID} "
    "${CMAKE_CXX_COMPILER_VERSION}; ${remedy}.")
endif()
if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS needed)
  message(FATAL_ERROR "CXX: expected ${CMAKE_CXX_COMPILER_ID} >= ${needed}, got ${CMAKE_CXX_COMPILER_VERSION}; "
    "C++20 as the core uses it needs GCC >= 12 or Clang >= 16. Remedy: ${remedy}.")
endif()
